/* What the fuzzed programs share: an input, of which every choice takes some bytes.
 *
 * With clang -fsanitize=fuzzer -DFUZZ_GUIDED, libFuzzer makes the inputs (tests/fuzz). Without, the
 * program runs on the files that it is given, and for a number N on N inputs drawn at random, always
 * the same. */
#ifndef FUZZ_H
#define FUZZ_H

#include <inttypes.h>

#include "channel.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const uint8_t *input, *input_end;

static inline void start_input(const uint8_t *data, size_t size) {
    input = data;
    input_end = data + size;
}

static inline int has_input(void) {
    return input < input_end;
}

/* A choice below limit; 0 where the input is over. */
static inline unsigned below(unsigned limit) {
    unsigned drawn = 0;
    for (unsigned most = 1; most < limit && has_input(); most = most << 8 | 0xff)
        drawn = drawn << 8 | *input++;
    return drawn % limit;
}

static inline unsigned char draw_byte(void) {
    return (unsigned char)below(256);
}

#ifndef FUZZ_GUIDED

static inline void run_file(const char *name) {
    static uint8_t data[1 << 20];
    FILE *file = fopen(name, "rb");
    CHECK(file != NULL);
    size_t size = fread(data, 1, sizeof data, file);
    CHECK(fclose(file) == 0);
    (void)LLVMFuzzerTestOneInput(data, size);
}

/* splitmix64 */
static inline uint64_t draw_number(uint64_t *state) {
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static inline void run_drawn(uint64_t seed) {
    uint8_t data[2000];
    uint64_t state = seed;
    size_t size = (size_t)(draw_number(&state) % sizeof data);
    for (size_t i = 0; i < size; i++)
        data[i] = (uint8_t)draw_number(&state);
    (void)LLVMFuzzerTestOneInput(data, size);
}

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        char *end;
        uint64_t count = strtoull(argv[i], &end, 10);
        if (*end != '\0')
            run_file(argv[i]);
        else
            for (uint64_t seed = 0; seed < count; seed++)
                run_drawn(seed);
    }
    return 0;
}

#endif

#endif
