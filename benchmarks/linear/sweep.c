/* sweep.c - the memory floor: reads bytes as fast as this CPU can and does nothing else with them, or on request next
 * to nothing: 16 additions and XORs for every 64 bytes.
 *
 * Each thread reads its contiguous share as several forward streams and XORs all 64-bit words, so that the result
 * proves that every byte was read. Threads wait on a condition variable between sweeps: they take no CPU from other
 * engines.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { LINE = 64, MAX_STREAMS = 16, AHEAD = 8192 };

/* 64 bytes; the compiler makes it one, two or four registers of the machine */
typedef uint64_t line __attribute__((vector_size(LINE), aligned(8), may_alias));

static uint64_t fold(line v) {
  uint64_t sum = 0;
  for (int i = 0; i < LINE / 8; ++i) sum ^= v[i];
  return sum;
}

/* streams is a constant where this is called: the inner loop unrolls and the sums stay in registers */
static inline __attribute__((always_inline)) uint64_t read_streams(const uint8_t *bytes, size_t size,
                                                                   const size_t streams) {
  const size_t part = size / (streams * LINE) * LINE;
  line sums[MAX_STREAMS] = {{0}};
  for (size_t i = 0; i < part; i += LINE) {
#pragma GCC unroll 16
    for (size_t s = 0; s < streams; ++s) sums[s] ^= *(const line *)(const void *)(bytes + s * part + i);
  }
  uint64_t sum = 0;
  for (size_t s = 0; s < streams; ++s) sum ^= fold(sums[s]);
  for (size_t i = streams * part; i < size; i += 8) { /* what does not fill a line of every stream */
    uint64_t word;
    memcpy(&word, bytes + i, sizeof word);
    sum ^= word;
  }
  return sum;
}

/* The same with arithmetic on every line, each step unlike the one before so that no compiler can merge two. Lines are
 * prefetched, without which arithmetic stops the loads. */
static inline __attribute__((always_inline)) uint64_t add_streams(const uint8_t *bytes, size_t size,
                                                                  const size_t streams, uint64_t *sink) {
  const size_t part = size / (streams * LINE) * LINE;
  line all = {0}, s0 = {1}, s1 = {2}, s2 = {3}, s3 = {4};
  for (size_t i = 0; i < part; i += LINE) {
#pragma GCC unroll 16
    for (size_t s = 0; s < streams; ++s) {
      const uint8_t *at = bytes + s * part + i;
      __builtin_prefetch(at + AHEAD, 0, 2);
      const line v = *(const line *)(const void *)at;
      all ^= v;
      s0 += v, s1 ^= v, s2 += v, s3 ^= v;
      s0 ^= s2, s1 += s3, s2 ^= v, s3 += v;
      s0 += v, s1 ^= v, s2 += v, s3 ^= v;
      s0 ^= s3, s1 += s2, s2 ^= v, s3 += v;
    }
  }
  *sink ^= fold(s0 ^ s1) ^ fold(s2 ^ s3);
  uint64_t sum = fold(all);
  for (size_t i = streams * part; i < size; i += 8) {
    uint64_t word;
    memcpy(&word, bytes + i, sizeof word);
    sum ^= word;
  }
  return sum;
}

static uint64_t add_share(const uint8_t *bytes, size_t size, int streams, uint64_t *sink) {
  switch (streams) {
    case 1:
      return add_streams(bytes, size, 1, sink);
    case 2:
      return add_streams(bytes, size, 2, sink);
    case 4:
      return add_streams(bytes, size, 4, sink);
    case 8:
      return add_streams(bytes, size, 8, sink);
    default:
      return add_streams(bytes, size, 16, sink);
  }
}

static uint64_t read_share(const uint8_t *bytes, size_t size, int streams) {
  switch (streams) {
    case 1:
      return read_streams(bytes, size, 1);
    case 2:
      return read_streams(bytes, size, 2);
    case 4:
      return read_streams(bytes, size, 4);
    case 8:
      return read_streams(bytes, size, 8);
    default:
      return read_streams(bytes, size, 16);
  }
}

typedef struct sweeper {
  pthread_mutex_t lock;
  pthread_cond_t wake, done;
  const uint8_t *bytes;
  size_t size;
  int streams, adds, threads, working, stop;
  unsigned round;
  uint64_t sum, sink;
  pthread_t *workers;
} sweeper;

typedef struct worker {
  sweeper *sweeper;
  int index;
} worker;

static uint64_t share_of(const sweeper *s, int index, uint64_t *sink) {
  const size_t words = s->size / 8, first = words * (size_t)index / (size_t)s->threads,
               last = words * ((size_t)index + 1) / (size_t)s->threads;
  const uint8_t *bytes = s->bytes + first * 8;
  const size_t size = (last - first) * 8;
  return s->adds ? add_share(bytes, size, s->streams, sink) : read_share(bytes, size, s->streams);
}

static void *work(void *arg) {
  const worker me = *(worker *)arg;
  free(arg);
  sweeper *s = me.sweeper;
  unsigned seen = 0;
  pthread_mutex_lock(&s->lock);
  for (;;) {
    while (s->round == seen && !s->stop) pthread_cond_wait(&s->wake, &s->lock);
    if (s->stop) break;
    seen = s->round;
    pthread_mutex_unlock(&s->lock);
    uint64_t sink = 0;
    const uint64_t sum = share_of(s, me.index, &sink);
    pthread_mutex_lock(&s->lock);
    s->sum ^= sum;
    s->sink ^= sink;
    if (--s->working == 0) pthread_cond_signal(&s->done);
  }
  pthread_mutex_unlock(&s->lock);
  return NULL;
}

void sweep_stop(sweeper *s) {
  pthread_mutex_lock(&s->lock);
  s->stop = 1;
  pthread_cond_broadcast(&s->wake);
  pthread_mutex_unlock(&s->lock);
  for (int i = 0; i + 1 < s->threads; ++i) pthread_join(s->workers[i], NULL);
  pthread_cond_destroy(&s->wake);
  pthread_cond_destroy(&s->done);
  pthread_mutex_destroy(&s->lock);
  free(s->workers);
  free(s);
}

/* NULL if memory or threads run out. */
sweeper *sweep_start(int threads) {
  sweeper *s = calloc(1, sizeof *s);
  if (s == NULL) return NULL;
  s->threads = 1;
  s->workers = calloc((size_t)threads, sizeof *s->workers);
  pthread_mutex_init(&s->lock, NULL);
  pthread_cond_init(&s->wake, NULL);
  pthread_cond_init(&s->done, NULL);
  while (s->workers != NULL && s->threads < threads) {
    worker *me = malloc(sizeof *me);
    if (me == NULL) break;
    *me = (worker){s, s->threads};
    if (pthread_create(&s->workers[s->threads - 1], NULL, work, me) != 0) {
      free(me);
      break;
    }
    ++s->threads;
  }
  if (s->threads < threads) {
    sweep_stop(s);
    return NULL;
  }
  return s;
}

/* XOR of all 64-bit words; size is a multiple of 8, streams 1, 2, 4, 8 or 16; adds 1: with arithmetic. */
uint64_t sweep_run(sweeper *s, const uint8_t *bytes, size_t size, int streams, int adds) {
  pthread_mutex_lock(&s->lock);
  s->bytes = bytes;
  s->size = size;
  s->streams = streams;
  s->adds = adds;
  s->working = s->threads - 1;
  s->sum = 0;
  ++s->round;
  pthread_cond_broadcast(&s->wake);
  pthread_mutex_unlock(&s->lock);
  uint64_t sink = 0;
  const uint64_t sum = share_of(s, 0, &sink);
  pthread_mutex_lock(&s->lock);
  s->sink ^= sink;
  while (s->working > 0) pthread_cond_wait(&s->done, &s->lock);
  s->sum ^= sum;
  const uint64_t all = s->sum;
  pthread_mutex_unlock(&s->lock);
  return all;
}
