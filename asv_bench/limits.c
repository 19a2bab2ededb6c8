/* What RMSProp costs a processor with AVX2, apart from memory: loops in C, of the instructions that the kernels
   have, with parts taken out.

       gcc -O2 -mavx2 asv_bench/limits.c -o limits && ./limits

   4096 elements, which the first caches hold; one thread. Medians of 41, in turns. */
#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { N = 4096, CALLS = 40, TURNS = 41 };
typedef __m256 Floats;
typedef __m256i Words;

static _Alignas(64) float params[N], grads[N], states[N];
static _Alignas(64) uint16_t params16[N], grads16[N], states16[N];
static Floats batch, decay, rest, rate, one, epsilon, nan_;
static Words half, lowest, zero;

static inline Floats widen(const uint16_t *from) {
    Words words = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
}

static inline void narrow(uint16_t *to, Floats a, Floats b) {
    Words x = _mm256_srli_epi32(_mm256_castps_si256(a), 16), y = _mm256_srli_epi32(_mm256_castps_si256(b), 16);
    _mm256_storeu_si256((Words *)to, _mm256_permute4x64_epi64(_mm256_packus_epi32(x, y), 0xd8));
}

static inline Floats kept(Floats x) { return x; }

static inline Floats rounded_but_nan(Floats x) { /* to nearest even in bfloat16 */
    Words bits = _mm256_castps_si256(x), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), lowest);
    Words sum = _mm256_add_epi32(_mm256_add_epi32(bits, half), odd);
    return _mm256_castsi256_ps(_mm256_blend_epi16(sum, zero, 0x55));
}

static inline Floats rounded(Floats x) {
    return _mm256_blendv_ps(nan_, rounded_but_nan(x), _mm256_cmp_ps(x, x, _CMP_ORD_Q));
}

static inline Floats state_of(Floats grad, Floats state) {
    grad = _mm256_mul_ps(grad, batch);
    return _mm256_add_ps(_mm256_mul_ps(decay, state), _mm256_mul_ps(rest, _mm256_mul_ps(grad, grad)));
}

static inline Floats param_of(Floats grad, Floats state, Floats param) {
    Floats scaled = _mm256_mul_ps(_mm256_mul_ps(rate, _mm256_mul_ps(grad, batch)), one);
    Floats root = _mm256_sqrt_ps(_mm256_add_ps(state, epsilon));
    return _mm256_sub_ps(param, _mm256_div_ps(scaled, _mm256_add_ps(root, epsilon)));
}

#define LOAD(array, i) _mm256_loadu_ps(array + i)
#define LOAD16(array, i) widen(array##16 + i)
#define STORE(array, i, a, b) (_mm256_storeu_ps(array + i, a), _mm256_storeu_ps(array + i + 8, b))
#define STORE16(array, i, a, b) narrow(array##16 + i, a, b)
#define STEP(name, FROM, TO, ROUND, STATE_FROM, STATE_TO, STATE_ROUND)                                       \
    static void name(void) {                                                                                 \
        for (int i = 0; i < N; i += 16) {                                                                    \
            Floats g = FROM(grads, i), h = FROM(grads, i + 8);                                               \
            Floats s = STATE_ROUND(state_of(g, STATE_FROM(states, i)));                                      \
            Floats t = STATE_ROUND(state_of(h, STATE_FROM(states, i + 8)));                                  \
            STATE_TO(states, i, s, t);                                                                       \
            Floats p = ROUND(param_of(g, s, FROM(params, i))), q = ROUND(param_of(h, t, FROM(params, i + 8))); \
            TO(params, i, p, q);                                                                             \
        }                                                                                                    \
    }
STEP(float32, LOAD, STORE, kept, LOAD, STORE, kept)
STEP(mixed, LOAD16, STORE16, rounded, LOAD, STORE, kept)
STEP(mixed_but_nan, LOAD16, STORE16, rounded_but_nan, LOAD, STORE, kept)
STEP(mixed_but_rounding, LOAD16, STORE16, kept, LOAD, STORE, kept)
STEP(all, LOAD16, STORE16, rounded, LOAD16, STORE16, rounded)
STEP(all_but_nan, LOAD16, STORE16, rounded_but_nan, LOAD16, STORE16, rounded_but_nan)
STEP(all_but_rounding, LOAD16, STORE16, kept, LOAD16, STORE16, kept)

static void root_and_division(void) {
    Floats sum = one;
    for (int i = 0; i < N; i += 8) sum = _mm256_add_ps(sum, _mm256_div_ps(one, _mm256_sqrt_ps(LOAD(states, i))));
    _mm256_storeu_ps(grads, _mm256_mul_ps(sum, _mm256_setzero_ps()));
}

static void rounding(void) {
    for (int i = 0; i < N; i += 16) narrow(params16 + i, rounded(LOAD(params, i)), rounded(LOAD(params, i + 8)));
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(void) {
    struct { const char *name; void (*run)(void); } loops[] = {
        {"a square root and a division, nothing else", root_and_division},
        {"float32", float32},
        {"bfloat16 with float32 states", mixed},
        {"  without the care for NaN", mixed_but_nan},
        {"  without rounding", mixed_but_rounding},
        {"all bfloat16", all},
        {"  without the care for NaN", all_but_nan},
        {"  without rounding", all_but_rounding},
        {"one rounding to bfloat16, nothing else", rounding},
    };
    enum { LOOPS = sizeof loops / sizeof *loops };
    static double times[LOOPS][TURNS];
    batch = one = _mm256_set1_ps(1), decay = _mm256_set1_ps(.95f), rest = _mm256_set1_ps(.05f);
    rate = _mm256_set1_ps(1e-3f), epsilon = _mm256_set1_ps(1e-6f);
    nan_ = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
    half = _mm256_set1_epi32(0x7fff), lowest = _mm256_set1_epi32(1), zero = _mm256_setzero_si256();
    for (int i = 0; i < N; i++) params[i] = grads[i] = states[i] = 1, params16[i] = grads16[i] = states16[i] = 0x3f80;
    for (int turn = 0; turn < TURNS; turn++)
        for (int k = 0; k < LOOPS; k++) {
            struct timespec begin, end;
            clock_gettime(CLOCK_MONOTONIC, &begin);
            for (int call = 0; call < CALLS; call++) loops[k].run();
            clock_gettime(CLOCK_MONOTONIC, &end);
            times[k][turn] = (end.tv_sec - begin.tv_sec) * 1e9 + end.tv_nsec - begin.tv_nsec;
        }
    for (int k = 0; k < LOOPS; k++) {
        qsort(times[k], TURNS, sizeof *times[k], ascending);
        printf("%-45s %.2f ns an element\n", loops[k].name, times[k][TURNS / 2] / CALLS / N);
    }
}
