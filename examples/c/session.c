#include "session.h"

#include <string.h>

#include "shared/library.h"
#include "shared/weights.h"

typedef OrtStatus *(*register_function)(OrtSessionOptions *, const OrtApiBase *);

bool session_good(const OrtApi *api, OrtStatus *status, const char *what, problem *why) {
  if (!status) return true;
  problem_set(why, "%s: %s", what, api->GetErrorMessage(status));
  api->ReleaseStatus(status);
  return false;
}

static bool set_options(const session_options *options, const model_folder *folder, const OrtApiBase *base,
                        session *out, OrtSessionOptions *made, problem *why) {
  const OrtApi *api = out->api;
  if (!session_good(api, api->SetSessionLogSeverityLevel(made, ORT_LOGGING_LEVEL_FATAL), "session options", why) ||
      !session_good(api, api->SetIntraOpNumThreads(made, options->threads), "--threads", why)) {
    return false;
  }
  if (!folder->needs_library) {
    return !options->kernel ||
           problem_set(why,
                       "--kernel: %s was exported for hosts without the operator library, and has no "
                       "kernel to choose; leave it out",
                       folder->model_file);
  }
  const char *kernel = folder_kernel(folder, options->kernel);
  if (kernel && !session_good(api, api->AddSessionConfigEntry(made, "fairy2i.kernel", kernel), "--kernel", why))
    return false;
  void *function = library_open_operators(options->library, why);
  if (!function) return false;
  register_function register_operators;
  memcpy(&register_operators, &function, sizeof register_operators);
  return session_good(api, register_operators(made, base), options->library, why);
}

static bool open_model(const model_folder *folder, const OrtSessionOptions *made, session *out, problem *why) {
  OrtStatus *status = out->api->CreateSession(out->env, folder->model_file, made, &out->model);
  if (status && weights_explain(folder->model_file, out->api->GetErrorMessage(status), why)) {
    out->api->ReleaseStatus(status);
    return false;
  }
  return session_good(out->api, status, folder->model_file, why);
}

bool session_open(const session_options *options, const model_folder *folder, session *out, problem *why) {
  memset(out, 0, sizeof *out);
  const OrtApiBase *base = onnxruntime_open(options->onnxruntime, why);
  out->api = base ? base->GetApi(NEEDED_API) : NULL;
  bool good = base && (out->api || problem_set(why, "%s: has no C API %d; pip install --upgrade onnxruntime",
                                               options->onnxruntime, NEEDED_API));
  OrtSessionOptions *made = NULL;
  good =
      good &&
      session_good(out->api, out->api->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "fairy2i", &out->env), "onnxruntime", why) &&
      session_good(out->api, out->api->CreateSessionOptions(&made), "onnxruntime", why) &&
      set_options(options, folder, base, out, made, why) && open_model(folder, made, out, why);
  if (made) out->api->ReleaseSessionOptions(made);
  if (!good) session_close(out);
  return good;
}

void session_close(session *opened) {
  if (opened->model) opened->api->ReleaseSession(opened->model);
  if (opened->env) opened->api->ReleaseEnv(opened->env);
  memset(opened, 0, sizeof *opened);
}
