/* message.h - error texts. */
#ifndef F2I_MESSAGE_H
#define F2I_MESSAGE_H

#include "fairy2i.h"

#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
/* Writes the message (message may be NULL), in valid UTF-8 without control characters, and returns status. */
f2i_status f2i_fail(f2i_message *message, f2i_status status, const char *format, ...);

/* Empties the message (which may be NULL) and returns F2I_OK. */
f2i_status f2i_ok(f2i_message *message);

#endif
