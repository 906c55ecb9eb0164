/* faults.c - a disk that is full or fails: loaded with LD_PRELOAD, it counts what changes files under a folder and lets
 * the calls from a certain one on fail. By environment variables, which are read at every call: FAULTS_UNDER   the
 * folder; nothing fails without it FAULTS_AT      number of the call that fails, from 1 FAULTS_ERRNO   with which error
 *   FAULTS_STAY    all later ones fail, too */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static long count;

long faults_count(void);
long faults_count(void) { return count; }

static int number(const char *name) {
  const char *text = getenv(name);
  return text ? atoi(text) : 0;
}

static int fails(const char *path) {
  const char *under = getenv("FAULTS_UNDER");
  if (!under || !*under || strncmp(path, under, strlen(under)) != 0) return 0;
  long now = ++count, at = number("FAULTS_AT");
  if (at == 0 || now < at || (now > at && !number("FAULTS_STAY"))) return 0;
  errno = number("FAULTS_ERRNO");
  return 1;
}

static int file_fails(int file) {
  char link[64], path[PATH_MAX + 1];
  if (!getenv("FAULTS_UNDER")) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, path, PATH_MAX);
  if (length < 0) return 0;
  path[length] = '\0';
  return fails(path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int file, const void *data, size_t size) { return file_fails(file) ? -1 : REAL(write)(file, data, size); }
ssize_t writev(int file, const struct iovec *parts, int n) {
  return file_fails(file) ? -1 : REAL(writev)(file, parts, n);
}
ssize_t pwrite(int file, const void *data, size_t size, off_t at) {
  return file_fails(file) ? -1 : REAL(pwrite)(file, data, size, at);
}
ssize_t pwrite64(int file, const void *data, size_t size, off64_t at) {
  return file_fails(file) ? -1 : REAL(pwrite64)(file, data, size, at);
}
ssize_t sendfile(int out, int in, off_t *at, size_t size) {
  return file_fails(out) ? -1 : REAL(sendfile)(out, in, at, size);
}
ssize_t sendfile64(int out, int in, off64_t *at, size_t size) {
  return file_fails(out) ? -1 : REAL(sendfile64)(out, in, at, size);
}
int ftruncate(int file, off_t size) { return file_fails(file) ? -1 : REAL(ftruncate)(file, size); }
int ftruncate64(int file, off64_t size) { return file_fails(file) ? -1 : REAL(ftruncate64)(file, size); }
int fsync(int file) { return file_fails(file) ? -1 : REAL(fsync)(file); }
int rename(const char *from, const char *to) { return fails(to) ? -1 : REAL(rename)(from, to); }
