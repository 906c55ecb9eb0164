/* session.h - onnxruntime with the operator library, and a session of one model. */
#ifndef SESSION_H
#define SESSION_H

#include "shared/folder.h"
#include "shared/onnxruntime.h"

typedef struct session_options {
  const char *onnxruntime; /* path or name of its shared library */
  const char *library;     /* path or name of the operator library; not looked at if the model does not need it */
  const char *kernel;      /* "lut", "exact" or "dot", or NULL for what the environment, else the folder says */
  int threads;             /* 0: one per physical core */
} session_options;

typedef struct session {
  const OrtApi *api;
  OrtEnv *env;
  OrtSession *model;
} session;

/* Open the model of a folder. Returns false, and nothing to close, if that fails. */
bool session_open(const session_options *options, const model_folder *folder, session *out, problem *why);
void session_close(session *opened);

/* Whether a call went well; else its message becomes the problem, and the status is released. */
bool session_good(const OrtApi *api, OrtStatus *status, const char *what, problem *why);

#endif
