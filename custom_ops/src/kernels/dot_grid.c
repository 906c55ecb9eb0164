/* dot_grid.c - the grid on which "dot" rounds the weights of a layer. */
#include <math.h>

#include "kernels/dot_operands.h"

/* Grid steps in the largest sum of scales, at most: each byte plane that adds to a weight is rounded by half a step,
 * and the sum has to be at most 127. */
static int most_steps(int stages) {
  static const int most[F2I_MAX_STAGES] = F2I_GRID_STEPS;
  return most[stages - 1];
}

/* The largest of the four sums that a weight may be, of one step for each. */
static double largest_sum(const float *scales, int stages) {
  double sums[2] = {0.0, 0.0};
  for (int i = 0; i < 4 * stages; ++i) sums[i % 2] += (double)fabsf(scales[i]);
  return sums[0] > sums[1] ? sums[0] : sums[1];
}

static double squared_error(double value, double steps) {
  const float exact = (float)(value * steps), error = exact - rintf(exact);
  return (double)error * error;
}

/* How far a grid is off, squared and relative to the scales: of the values that f2i_prepare_dot rounds, each as often
 * as codes name it. steps: per unit of the scales */
static double grid_error(const float *scales, int stages, double steps) {
  double error = 0.0;
  for (int p = 0; p < stages; ++p) {
    const uint8_t *low = f2i_byte_planes[stages - 1][p][0], *high = f2i_byte_planes[stages - 1][p][1];
    for (int part = 0; part < 2; ++part) {
      const double a = scales[(low[0] * 2 + low[1]) * 2 + part], b = scales[(high[0] * 2 + high[1]) * 2 + part];
      if (low[1] != high[1]) { /* of two matrices: half of the codes are on this axis, and half are zero there */
        error += squared_error(a, steps) + squared_error(b, steps);
      } else {
        error += (squared_error(a, steps) + squared_error(b, steps)) / 2;
        error += (squared_error(a + b, steps) + squared_error(a - b, steps)) / 4;
      }
    }
  }
  return error / (steps * steps);
}

int f2i_dot_steps(const float *scales, int stages) {
  const double sum = largest_sum(scales, stages);
  int best = most_steps(stages);
  if (!(sum > 0.0)) return best;
  double least = grid_error(scales, stages, best / sum);
  for (int steps = best - 1; steps > most_steps(stages) - F2I_GRID_CHOICES; --steps) {
    const double error = grid_error(scales, stages, steps / sum);
    if (error < least) least = error, best = steps;
  }
  return best;
}

float f2i_dot_grid(const float *scales, int stages, int steps) { return (float)(largest_sum(scales, stages) / steps); }
