/* options.h - the command line, and the token ids that it or standard input gives. */
#ifndef OPTIONS_H
#define OPTIONS_H

#include "session.h"

typedef struct options {
  const char *folder;
  session_options session;
  int64_t max_new_tokens;
  int64_t context; /* 0: what the model was built for */
  int64_t *tokens; /* [count] the prompt */
  size_t count;
} options;

typedef enum command { COMMAND_RUN, COMMAND_HELP, COMMAND_WRONG } command;

/* Read the command line, and the prompt from standard input if the command line has none. COMMAND_RUN: to be closed. */
command options_read(int argc, char **argv, options *out, problem *why);
void options_close(options *read);

extern const char OPTIONS_HELP[];

#endif
