/* fingerprint.c - a 64-bit hash at the speed of memory, for noticing that a weight has changed. */
#include <string.h>

#include "base/message.h"
#include "fairy2i.h"

enum { LANES = 8 }; /* multiplications take 3 to 5 cycles: 8 independent chains keep the multiplier busy */

static const uint64_t factor = 0x9E3779B97F4A7C15u; /* odd, so that multiplying loses nothing */

/* The rotation brings the top bits, signs of weights, down to where the multiplication spreads them. */
static uint64_t mixed(uint64_t hash, uint64_t word) { return ((hash << 23 | hash >> 41) ^ word) * factor; }

f2i_status f2i_fingerprint(const void *data, size_t bytes, uint64_t *fingerprint, f2i_message *message) {
  if ((data == NULL && bytes != 0) || fingerprint == NULL) {
    return f2i_fail(message, F2I_INVALID_ARGUMENT, "fingerprint: expected pointers, got NULL");
  }
  uint64_t lanes[LANES], words[LANES];
  for (int i = 0; i < LANES; ++i) lanes[i] = bytes + (uint64_t)i;
  const char *from = data;
  size_t left = bytes;
  for (; left >= sizeof words; left -= sizeof words, from += sizeof words) {
    memcpy(words, from, sizeof words);
    for (int i = 0; i < LANES; ++i) lanes[i] = mixed(lanes[i], words[i]);
  }
  if (left != 0) {
    memset(words, 0, sizeof words);
    memcpy(words, from, left);
    for (int i = 0; i < LANES; ++i) lanes[i] = mixed(lanes[i], words[i]);
  }
  uint64_t all = bytes;
  for (int i = 0; i < LANES; ++i) all = mixed(all, lanes[i]);
  *fingerprint = all ^ all >> 32;
  return f2i_ok(message);
}
