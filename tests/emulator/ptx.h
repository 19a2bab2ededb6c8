/* What kernels translated by ptx_to_c.py are made of. Floating-point results are PTX's, whose NaN is always the same one. */
#include <fenv.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint8_t u8; typedef uint16_t u16; typedef uint32_t u32; typedef uint64_t u64;
typedef int8_t s8; typedef int16_t s16; typedef int32_t s32; typedef int64_t s64;

#define TRAP(why) do { fprintf(stderr, "emulated GPU: %s\n", why); abort(); } while (0)
/* Device addresses are host addresses with this bit flipped, so that what one side reads of the other's memory by mistake is a crash. */
#define DEVICE_BIT (1ull << 46)

struct kernel { const char* name; int n_params; void (*run)(u32 blocks, u32 threads, void** params); };

static inline float as_f32(u32 x) { float f; memcpy(&f, &x, 4); return f; }
static inline double as_f64(u64 x) { double f; memcpy(&f, &x, 8); return f; }
static inline u32 bits_f32(float f) { u32 x; memcpy(&x, &f, 4); return x; }
static inline u64 bits_f64(double f) { u64 x; memcpy(&x, &f, 8); return x; }
static inline float canonical_f32(float f) { return f != f ? as_f32(0x7fffffffu) : f; }
static inline double canonical_f64(double f) { return f != f ? as_f64(0x7fffffffffffffffull) : f; }
static inline float flushed(float f) { return fabsf(f) < 1.17549435e-38f ? copysignf(0, f) : f; }
static inline float from_half(u16 h) { _Float16 x; memcpy(&x, &h, 2); return (float)x; }
static inline u16 to_half(float f) { _Float16 x = (_Float16)f; u16 h; memcpy(&h, &x, 2); return f != f ? 0x7fff : h; }
static inline u16 to_bfloat(float f) { u32 x = bits_f32(f); return f != f ? 0x7fff : (x + 0x7fff + (x >> 16 & 1)) >> 16; }
#define saturated(x) ((x) > 0 ? ((x) < 1 ? (x) : 1) : 0)

/* -0 is below 0, and NaN loses. */
static inline double minimum(double a, double b) { return a != a ? b : b != b ? a : a < b ? a : b < a ? b : signbit(a) ? a : b; }
static inline double maximum(double a, double b) { return a != a ? b : b != b ? a : a > b ? a : b > a ? b : signbit(a) ? b : a; }
static inline float fma_down(float a, float b, float c) { fesetround(FE_DOWNWARD); volatile float r = fmaf(a, b, c); fesetround(FE_TONEAREST); return r; }
static inline double coarse_reciprocal(double x) { return as_f64(bits_f64(1 / x) & ~0xffffffffull); }
static inline s64 to_s64(double x) { return x != x ? INT64_MIN : x >= 0x1p63 ? INT64_MAX : x < -0x1p63 ? INT64_MIN : (s64)x; }
static inline s32 to_s32(double x) { return x != x ? 0 : x >= 0x1p31 ? INT32_MAX : x < -0x1p31 ? INT32_MIN : (s32)x; }

static inline u32 permuted(u32 a, u32 b, u32 selector) {
  u64 bytes = (u64)b << 32 | a; u32 result = 0;
  for (int k = 0; k < 4; k++) {
    u32 n = selector >> 4 * k & 15, byte = bytes >> 8 * (n & 7) & 255;
    result |= (n & 8 ? (byte & 128 ? 255 : 0) : byte) << 8 * k;
  }
  return result;
}

static inline u8* global(u64 address, int size) { if (address & (size - 1)) TRAP("misaligned access to global memory"); return (u8*)(address ^ DEVICE_BIT); }
static inline u8* shared(u8* memory, u64 address, int size) { if (address & (size - 1)) TRAP("misaligned access to shared memory"); return memory + address; }
