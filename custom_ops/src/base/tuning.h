/* tuning.h - what depends on the processor and not on its instruction set. Results do not depend on any of it. */
#ifndef F2I_TUNING_H
#define F2I_TUNING_H

#include "fairy2i.h"

enum { F2I_NAME_SIZE = 24 }; /* of the name of a family or an ISA, with its zero */

typedef struct f2i_tuning {
  char lut[F2I_NAME_SIZE], dot[F2I_NAME_SIZE]; /* ISA of that family for callers who name none; "": the best one */
  int64_t auto_rows;   /* of x: from so many on "auto" takes "dot"; 0: never; -1: as the kernel says */
  int64_t alone_bytes; /* a call that reads at most so many packed bytes does not wake other threads */
} f2i_tuning;

/* What is known to be best on the processor this runs on; looked up once. */
const f2i_tuning *f2i_tuning_here(void);

/* Changes what the text names, "key=value" separated by blanks:
 *   lut=ISA dot=ISA auto=ROWS alone=BYTES
 * F2I_INVALID_ARGUMENT and a message if it is anything else; whether there is such an ISA is not looked at. */
f2i_status f2i_tuning_read(const char *text, f2i_tuning *tuning, f2i_message *message);

#endif
