/* test_releases.c - what the library registers with a given ONNX Runtime release.
 *
 *   test_releases VERSION
 *
 * plays a runtime of that version and prints the operators it was handed, or the error: one line each.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "onnxruntime_c_api.h"

OrtStatus *ORT_API_CALL RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base);

static const char *version;
static int domain, options; /* only their addresses are used */

static const char *ORT_API_CALL version_string(void) { return version; }

static OrtStatus *ORT_API_CALL create_status(OrtErrorCode code, const char *message) {
  (void)code;
  char *text = malloc(strlen(message) + 1);
  if (text == NULL) exit(2);
  return (OrtStatus *)strcpy(text, message);
}

static OrtStatus *ORT_API_CALL create_domain(const char *name, OrtCustomOpDomain **out) {
  (void)name;
  *out = (OrtCustomOpDomain *)&domain;
  return NULL;
}

static OrtStatus *ORT_API_CALL add_op(OrtCustomOpDomain *to, const OrtCustomOp *op) {
  (void)to;
  printf("%s: API %u, %s\n", op->GetName(op), (unsigned)op->version,
         op->InferOutputShapeFn != NULL ? "shape function" : "no shape function");
  return NULL;
}

static OrtStatus *ORT_API_CALL add_domain(OrtSessionOptions *to, OrtCustomOpDomain *added) {
  (void)to;
  (void)added;
  return NULL;
}

static const OrtApi api = {
    .CreateStatus = create_status,
    .CreateCustomOpDomain = create_domain,
    .CustomOpDomain_Add = add_op,
    .AddCustomOpDomain = add_domain,
};

static const OrtApi *ORT_API_CALL get_api(uint32_t wanted) {
  return wanted <= (uint32_t)strtoul(strchr(version, '.') + 1, NULL, 10) ? &api : NULL;
}

int main(int argc, char **argv) {
  if (argc != 2 || strchr(argv[1], '.') == NULL) return 2;
  version = argv[1];
  const OrtApiBase base = {get_api, version_string};
  OrtStatus *status = RegisterCustomOps((OrtSessionOptions *)&options, &base);
  if (status != NULL) printf("error: %s\n", (const char *)status);
  free(status);
  return 0;
}
