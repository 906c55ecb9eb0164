/* static_host.c - a program with two libraries of operators linked in, this one's and one that has RegisterCustomOps.
 *   static_host LIBONNXRUNTIME MODEL     exits with 0 if both registered and MODEL became a session
 */
#include <dlfcn.h>
#include <stdio.h>

#include "fairy2i.h"
#include "onnxruntime_c_api.h"

OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base); /* the other one's */
extern int other_was_called;

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  void *runtime = dlopen(argv[1], RTLD_NOW);
  if (runtime == NULL) return fprintf(stderr, "%s\n", dlerror()), 2;
  const OrtApiBase *(*get)(void);
  *(void **)&get = dlsym(runtime, "OrtGetApiBase");
  const OrtApi *api = get()->GetApi(18);
  OrtEnv *env = NULL;
  OrtSessionOptions *options = NULL;
  OrtSession *session = NULL;
  OrtStatus *status = api->CreateEnv(ORT_LOGGING_LEVEL_WARNING, "static", &env);
  if (status == NULL) status = api->CreateSessionOptions(&options);
  if (status == NULL) status = RegisterCustomOps(options, get());
  if (status == NULL) status = Fairy2i_RegisterCustomOps(options, get());
  if (status == NULL) status = api->CreateSession(env, argv[2], options, &session);
  if (status != NULL) return fprintf(stderr, "%s\n", api->GetErrorMessage(status)), 1;
  api->ReleaseSession(session);
  api->ReleaseSessionOptions(options);
  api->ReleaseEnv(env);
  return other_was_called ? 0 : 3;
}
