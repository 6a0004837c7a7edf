/* Numbers of the BERT engine: bfloat16 with or without what its rounding lost, and the functions of a model on them. */
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

typedef uint16_t bf16;

INLINE bf16 rounded(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (bf16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

INLINE float widened(bf16 value) {
    const uint32_t bits = (uint32_t)value << 16;
    float wide;
    memcpy(&wide, &bits, 4);
    return wide;
}

/* Numbers in bfloat16. `low` is how far behind them what their rounding lost is kept; 0 where it is not. */
typedef struct {
    bf16 *at;
    int64_t low;
} Numbers;

INLINE Numbers from_number(Numbers numbers, int64_t number) { return (Numbers){numbers.at + number, numbers.low}; }

/* The parts of a product: in the second the right one is low, in the third the left one. */
enum { HIGH_LOW = 1, LOW_HIGH = 2, WHOLE = 3 };
INLINE const bf16 *left(Numbers numbers, int part) { return numbers.at + (part == LOW_HIGH ? numbers.low : 0); }
INLINE const bf16 *right(Numbers numbers, int part) { return numbers.at + (part == HIGH_LOW ? numbers.low : 0); }
INLINE int parts(Numbers numbers) { return numbers.low ? WHOLE : 1; }

INLINE __m512 lost(__m512 value, __m256i kept) {
    return _mm512_sub_ps(value, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(kept), 16)));
}

INLINE void store(Numbers to, __m512 first, __m512 second) {
    const __m512i kept = (__m512i)_mm512_cvtne2ps_pbh(second, first);
    _mm512_storeu_si512(to.at, kept);
    if (to.low) {
        first = lost(first, _mm512_castsi512_si256(kept));
        second = lost(second, _mm512_extracti64x4_epi64(kept, 1));
        _mm512_storeu_si512(to.at + to.low, (__m512i)_mm512_cvtne2ps_pbh(second, first));
    }
}

/* 2^x for x ≤ 0, to 2e-7 of its value, or to 6e-5 where that is enough. */
INLINE __m512 power_of_two(__m512 x, int exact) {
    static const float fine[] = {1.0f,           6.93147181e-1f, 2.40226507e-1f, 5.55041087e-2f,
                                 9.61812911e-3f, 1.33335581e-3f, 1.54035304e-4f};
    static const float coarse[] = {1.0f, 6.9314718e-1f, 2.4022651e-1f, 5.5504109e-2f, 9.6181291e-3f};
    const float *factor = exact ? fine : coarse;
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 part = _mm512_sub_ps(x, whole);
    int i = exact ? 6 : 4;
    __m512 sum = _mm512_set1_ps(factor[i]);
    while (i) sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(factor[--i]));
    return _mm512_scalef_ps(sum, whole);
}

/* x Φ(x). Φ is an odd polynomial, fitted so that the product is within 5e-5 on [-4, 4], and constant beyond, where the
 * error is 4e-5 of x. */
INLINE __m512 gelu(__m512 x) {
    static const float factor[] = {3.98673384e-1f,  -6.58878329e-2f, 9.50539244e-3f, -1.00648874e-3f,
                                   7.48547969e-5f,  -3.65711259e-6f, 1.04195200e-7f, -1.30128035e-9f};
    const __m512 bound = _mm512_set1_ps(4.0f);
    const __m512 t = _mm512_max_ps(_mm512_min_ps(x, bound), _mm512_sub_ps(_mm512_setzero_ps(), bound));
    const __m512 square = _mm512_mul_ps(t, t);
    __m512 sum = _mm512_set1_ps(factor[7]);
    for (int i = 6; i >= 0; i--) sum = _mm512_fmadd_ps(sum, square, _mm512_set1_ps(factor[i]));
    return _mm512_mul_ps(x, _mm512_fmadd_ps(t, sum, _mm512_set1_ps(0.5f)));
}

/* The same within 5e-7: Φ by the error function as Abramowitz and Stegun approximate it, 7.1.26. */
INLINE __m512 exact_gelu(__m512 x) {
    static const float factor[] = {1.061405429f, -1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f};
    const __m512 one = _mm512_set1_ps(1.0f), size = _mm512_abs_ps(x);
    const __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(size, _mm512_set1_ps(0.3275911f * 0.70710678f), one));
    __m512 sum = _mm512_set1_ps(factor[0]);
    for (int i = 1; i < 5; i++) sum = _mm512_fmadd_ps(sum, t, _mm512_set1_ps(factor[i]));
    const __m512 square = _mm512_mul_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(-0.5f * 1.4426950408889634f));
    /* What is left of x beyond it: for x > 0 the product is x less than that much of it, for x < 0 that much of it. */
    const __m512 beyond = _mm512_mul_ps(_mm512_mul_ps(_mm512_mul_ps(sum, t), power_of_two(square, 1)),
                                        _mm512_mul_ps(size, _mm512_set1_ps(0.5f)));
    return _mm512_sub_ps(_mm512_max_ps(x, _mm512_setzero_ps()), beyond);
}
