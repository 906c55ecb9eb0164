/* register.c - see node.h. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/message.h"
#include "ort/node.h"

#define SAFE_SHAPE_INFERENCE 24 /* see f2i_operators_without_shapes */

/* One runtime per process: its entry point, and our domain, made at the first registration and shared by all sessions
 * (session options keep its address, so it is never released). */
static _Atomic(const OrtApiBase *) api_base;
static _Atomic(OrtCustomOpDomain *) shared_domain;

const OrtApiBase *f2i_api_base(void) { return atomic_load(&api_base); }

int f2i_is_release(const OrtApiBase *base, long minor) {
  const char *version = base->GetVersionString();
  return strncmp(version, "1.", 2) != 0 || strtol(version + 2, NULL, 10) >= minor;
}

static OrtStatus *register_ops(OrtSessionOptions *options, const OrtApiBase *base) {
  const OrtApi *api = base->GetApi(F2I_MIN_API);
  if (api == NULL) {
    f2i_message text;
    (void)f2i_fail(&text, F2I_OK, "Fairy2iMatMul needs ONNX Runtime 1.%d or later, this is %.32s", F2I_MIN_API,
                   base->GetVersionString());
    return base->GetApi(1)->CreateStatus(ORT_FAIL, text.text);
  }
  atomic_store(&api_base, base);
  OrtCustomOpDomain *domain = atomic_load(&shared_domain);
  if (domain == NULL) {
    const f2i_operator *own = f2i_is_release(base, SAFE_SHAPE_INFERENCE) ? f2i_operators : f2i_operators_without_shapes;
    OrtCustomOpDomain *none = NULL;
    F2I_RETURN_IF_ERROR(api->CreateCustomOpDomain("ai.fairy2i", &domain));
    OrtStatus *status = NULL;
    for (size_t i = 0; status == NULL && i < F2I_OPERATORS; ++i) status = api->CustomOpDomain_Add(domain, &own[i].op);
    if (status != NULL || !atomic_compare_exchange_strong(&shared_domain, &none, domain)) {
      api->ReleaseCustomOpDomain(domain);
      if (status != NULL) return status;
      domain = none; /* another thread was first */
    }
  }
  return api->AddCustomOpDomain(options, domain);
}

#if !defined(F2I_UNIQUE_NAMES) /* every library of operators has this one, so only one linked into a program may */
F2I_EXPORT OrtStatus *ORT_API_CALL RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base);

F2I_EXPORT OrtStatus *ORT_API_CALL RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
  return register_ops(options, base);
}
#endif

F2I_EXPORT OrtStatus *Fairy2i_RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
  return register_ops(options, base);
}
