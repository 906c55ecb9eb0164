/* byte_planes.c - which planes share a byte, as the format says it. */
#include "kernels/kernels.h"

const uint8_t f2i_byte_planes[F2I_MAX_STAGES][F2I_MAX_STAGES][2][2] = F2I_BYTE_PLANES;
