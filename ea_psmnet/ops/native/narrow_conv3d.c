/* 3 x 3 x 3 convolutions of 8 channels to 8, in bfloat16 with sums in float32, for processors with
 * AVX-512-BF16: see `narrow_conv3d.py`.
 *
 * Volumes are (images, depth, height, width, 8). Vectors run along the width, so that no lane is
 * lost where channels are few: each thread turns rows into planes of pairs of channels (forward) or
 * of single channels (gradient of the weight) in a scratch buffer.
 */
#include <stdint.h>
#include <string.h>

enum { CHANNELS = 8, PAIRS = CHANNELS / 2, TAPS = 27, LANES = 16, ROWS = 8, MARGIN = 64 };

typedef struct {
    void *data; /* bfloat16, channels adjacent */
    int64_t image, plane, row; /* strides in elements */
} Volume;

typedef struct {
    Volume input, output; /* `output` is its gradient where the weight's gradient is computed */
    const uint32_t *weight; /* (27, 4, 8) pairs of bfloat16: taps, pairs of inputs, outputs */
    const float *bias; /* (8,) or null */
    float *weight_gradient; /* (threads, 27, 8, 8, 16): taps, inputs, outputs, terms of a sum */
    int64_t images, depth, height, width; /* of the output */
    int64_t padded; /* along the depth; otherwise the input has a plane more at either end */
    int64_t threads;
} Conv;

/* For the caller to compare: a version, and the sizes of the structures. */
const int64_t narrow_conv3d_interface[] = {1, sizeof(Volume), sizeof(Conv)};

#ifdef __AVX512BF16__
#include <immintrin.h>

extern int omp_get_thread_num(void);

int64_t narrow_conv3d_supported(void) { return 1; }

/* Elements of a plane: a row with room for whole vectors and shifts. */
static inline int64_t plane_step(const Conv *c) { return (c->width + 31) / 32 * 32 + MARGIN; }

/* Bytes of a thread's scratch buffer. */
int64_t narrow_conv3d_scratch(const Conv *c) {
    const int64_t forward = 9 * PAIRS * 4, backward = (3 * (ROWS + 2) + ROWS) * CHANNELS * 2;
    return (forward > backward ? forward : backward) * plane_step(c) + 256;
}

/* A row of the output, or of its gradient. */
static inline uint16_t *output_row(const Conv *c, int64_t image, int64_t plane, int64_t row) {
    const Volume *v = &c->output;
    return (uint16_t *)v->data + image * v->image + plane * v->plane + row * v->row;
}

/* The input's row that the first tap along the depth meets, `k` further on; null beyond it. */
static inline const uint16_t *input_row(const Conv *c, int64_t image, int64_t plane, int64_t k,
                                        int64_t row) {
    const Volume *v = &c->input;
    const int64_t depth = c->padded ? c->depth : c->depth + 2;
    plane += c->padded ? k - 1 : k;
    if (plane < 0 || plane >= depth || row < 0 || row >= c->height) return 0;
    return (const uint16_t *)v->data + image * v->image + plane * v->plane + row * v->row;
}

/* 16 pixels from `x` on as four vectors of pairs of channels; zero beyond the row. */
static inline void read_pairs(const uint16_t *row, int64_t x, int64_t width, __m512i pairs[4]) {
    __m512i pixels[4]; /* of four each */
    for (int k = 0; k < 4; k++) {
        const int64_t at = x + 4 * k, left = width - at;
        if (left >= 4) {
            pixels[k] = _mm512_loadu_si512(row + at * CHANNELS);
        } else {
            uint16_t copy[4 * CHANNELS] = {0};
            if (left > 0) memcpy(copy, row + at * CHANNELS, left * CHANNELS * 2);
            pixels[k] = _mm512_loadu_si512(copy);
        }
    }
    const __m512i low =
        _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(2));
    const __m512i a = _mm512_permutex2var_epi32(pixels[0], low, pixels[1]);
    const __m512i b = _mm512_permutex2var_epi32(pixels[2], low, pixels[3]);
    const __m512i c = _mm512_permutex2var_epi32(pixels[0], high, pixels[1]);
    const __m512i d = _mm512_permutex2var_epi32(pixels[2], high, pixels[3]);
    pairs[0] = _mm512_shuffle_i32x4(a, b, 0x44);
    pairs[1] = _mm512_shuffle_i32x4(a, b, 0xee);
    pairs[2] = _mm512_shuffle_i32x4(c, d, 0x44);
    pairs[3] = _mm512_shuffle_i32x4(c, d, 0xee);
}

/* A row as planes of pairs, (4, step): pixel x at x + 1, zeros around. Null is a row of zeros. */
static void spread_pairs(const Conv *c, uint32_t *planes, const uint16_t *row) {
    const int64_t step = plane_step(c);
    if (!row) {
        memset(planes, 0, PAIRS * step * 4);
        return;
    }
    for (int64_t x = 0; x < c->width; x += LANES) {
        __m512i pairs[4];
        read_pairs(row, x, c->width, pairs);
        for (int k = 0; k < PAIRS; k++) _mm512_storeu_si512(planes + k * step + 1 + x, pairs[k]);
    }
}

/* A row as a plane a channel, (8, step): pixel x at x + shift. Null is a row of zeros. */
static void spread(const Conv *c, uint16_t *planes, const uint16_t *row, int64_t shift) {
    const int64_t step = plane_step(c);
    if (!row) {
        memset(planes, 0, CHANNELS * step * 2);
        return;
    }
    for (int64_t x = 0; x < c->width; x += LANES) {
        __m512i pairs[4];
        read_pairs(row, x, c->width, pairs);
        for (int k = 0; k < PAIRS; k++) {
            uint16_t *at = planes + 2 * k * step + shift + x;
            const __m512i second = _mm512_srli_epi32(pairs[k], 16);
            _mm256_storeu_si256((__m256i *)at, _mm512_cvtepi32_epi16(pairs[k]));
            _mm256_storeu_si256((__m256i *)(at + step), _mm512_cvtepi32_epi16(second));
        }
    }
}

static inline __m512i join(__m512 low, __m512 high) {
    const __m512i a = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(low));
    const __m512i b = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(high));
    return _mm512_or_si512(a, _mm512_slli_epi32(b, 16));
}

/* 16 pixels; the first `left` are in the row. */
static inline void write_pixels(uint16_t *at, const __m512 sums[8], int64_t left) {
    const __m512i p = join(sums[0], sums[1]), q = join(sums[2], sums[3]);
    const __m512i r = join(sums[4], sums[5]), s = join(sums[6], sums[7]);
    const __m512i a = _mm512_unpacklo_epi32(p, q), b = _mm512_unpackhi_epi32(p, q);
    const __m512i c = _mm512_unpacklo_epi32(r, s), d = _mm512_unpackhi_epi32(r, s);
    /* Lane k of pixels[j] is pixel 4 k + j. */
    const __m512i pixels[4] = {_mm512_unpacklo_epi64(a, c), _mm512_unpackhi_epi64(a, c),
                               _mm512_unpacklo_epi64(b, d), _mm512_unpackhi_epi64(b, d)};
#define WRITE(k)                                                         \
    for (int j = 0; j < 4; j++)                                          \
        if (4 * k + j < left)                                            \
            _mm_storeu_si128((__m128i *)(at + (4 * k + j) * CHANNELS),   \
                             _mm512_extracti32x4_epi32(pixels[j], k));
    WRITE(0) WRITE(1) WRITE(2) WRITE(3)
#undef WRITE
}

/* `count` vectors of pixels from `x` on. */
static inline __attribute__((always_inline)) void
convolve(const Conv *c, uint32_t *const rows[9], uint16_t *out, int64_t x, const int count) {
    const int64_t step = plane_step(c);
    const uint32_t *weight = c->weight;
    __m512 sums[3][CHANNELS];
    for (int n = 0; n < count; n++)
        for (int o = 0; o < CHANNELS; o++) sums[n][o] = _mm512_set1_ps(c->bias ? c->bias[o] : 0);
    for (int tap = 0; tap < TAPS; tap++) {
        const uint32_t *row = rows[tap / 3] + tap % 3 + x;
        for (int pair = 0; pair < PAIRS; pair++, row += step, weight += CHANNELS) {
            __m512bh seen[3];
            for (int n = 0; n < count; n++)
                seen[n] = (__m512bh)_mm512_loadu_si512(row + LANES * n);
            for (int o = 0; o < CHANNELS; o++) {
                const __m512bh factor = (__m512bh)_mm512_set1_epi32(weight[o]);
                for (int n = 0; n < count; n++)
                    sums[n][o] = _mm512_dpbf16_ps(sums[n][o], seen[n], factor);
            }
        }
    }
    for (int n = 0; n < count; n++) {
        const int64_t at = x + LANES * n;
        write_pixels(out + at * CHANNELS, sums[n], c->width - at);
    }
}

static void convolve_row(const Conv *c, uint32_t *const rows[9], uint16_t *out) {
    int64_t x = 0;
    for (; x + 2 * LANES < c->width; x += 3 * LANES) convolve(c, rows, out, x, 3);
    if (x + LANES < c->width) convolve(c, rows, out, x, 2);
    else if (x < c->width) convolve(c, rows, out, x, 1);
}

void narrow_conv3d_forward(const Conv *c, uint8_t *scratch) {
    const int64_t size = PAIRS * plane_step(c), room = narrow_conv3d_scratch(c);
    const int64_t blocks = (c->height + ROWS - 1) / ROWS;
#pragma omp parallel num_threads(c->threads)
    {
        uint32_t *own = (uint32_t *)(scratch + room * omp_get_thread_num());
        memset(own, 0, 9 * size * 4);
#pragma omp for schedule(dynamic)
        for (int64_t job = 0; job < c->images * c->depth * blocks; job++) {
            const int64_t d = job / blocks % c->depth, image = job / blocks / c->depth;
            const int64_t first = job % blocks * ROWS;
            const int64_t last = first + ROWS < c->height ? first + ROWS : c->height;
            for (int64_t row = first - 1; row <= last; row++) { /* three rows are kept */
                for (int k = 0; k < 3; k++)
                    spread_pairs(c, own + (k * 3 + (row + 3) % 3) * size,
                                 input_row(c, image, d, k, row));
                if (row <= first) continue;
                uint32_t *rows[9];
                for (int k = 0; k < 9; k++)
                    rows[k] = own + (k / 3 * 3 + (row + 1 + k % 3) % 3) * size;
                convolve_row(c, rows, output_row(c, image, d, row - 1));
            }
        }
    }
}

/* Adds to the sums of four inputs by four outputs what some rows have for one tap. */
static inline void correlate(const Conv *c, float *sums, const uint16_t *seen,
                             const uint16_t *gradient, int64_t rows) {
    const int64_t step = plane_step(c);
    __m512 total[4][4];
    for (int i = 0; i < 4; i++)
        for (int o = 0; o < 4; o++)
            total[i][o] = _mm512_loadu_ps(sums + (i * CHANNELS + o) * LANES);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t x = 0; x < c->width; x += 2 * LANES) {
            const int64_t at = row * CHANNELS * step + x;
            __m512bh g[4];
            for (int o = 0; o < 4; o++)
                g[o] = (__m512bh)_mm512_loadu_si512(gradient + at + o * step);
            for (int i = 0; i < 4; i++) {
                const __m512bh s = (__m512bh)_mm512_loadu_si512(seen + at + i * step);
                for (int o = 0; o < 4; o++) total[i][o] = _mm512_dpbf16_ps(total[i][o], s, g[o]);
            }
        }
    for (int i = 0; i < 4; i++)
        for (int o = 0; o < 4; o++)
            _mm512_storeu_ps(sums + (i * CHANNELS + o) * LANES, total[i][o]);
}

void narrow_conv3d_weight_gradient(const Conv *c, uint8_t *scratch) {
    const int64_t step = plane_step(c), size = CHANNELS * step, room = narrow_conv3d_scratch(c);
    const int64_t blocks = (c->height + ROWS - 1) / ROWS;
#pragma omp parallel num_threads(c->threads)
    {
        const int number = omp_get_thread_num();
        uint16_t *seen = (uint16_t *)(scratch + room * number);
        uint16_t *gradient = seen + 3 * (ROWS + 2) * size;
        float *own = c->weight_gradient + number * TAPS * CHANNELS * CHANNELS * LANES;
        memset(seen, 0, (3 * (ROWS + 2) + ROWS) * size * 2);
        memset(own, 0, TAPS * CHANNELS * CHANNELS * LANES * 4);
#pragma omp for schedule(static) /* the same sums every time */
        for (int64_t job = 0; job < c->images * c->depth * blocks; job++) {
            const int64_t d = job / blocks % c->depth, image = job / blocks / c->depth;
            const int64_t first = job % blocks * ROWS;
            const int64_t rows = first + ROWS < c->height ? ROWS : c->height - first;
            for (int64_t row = 0; row < rows; row++)
                spread(c, gradient + row * size, output_row(c, image, d, first + row), 0);
            for (int k = 0; k < 3; k++)
                for (int64_t row = 0; row < rows + 2; row++)
                    spread(c, seen + (k * (ROWS + 2) + row) * size,
                           input_row(c, image, d, k, first + row - 1), 1);
            for (int tap = 0; tap < TAPS; tap++) {
                const uint16_t *from =
                    seen + (tap / 9 * (ROWS + 2) + tap / 3 % 3) * size + tap % 3;
                for (int i = 0; i < CHANNELS; i += 4)
                    for (int o = 0; o < CHANNELS; o += 4)
                        correlate(c, own + ((tap * CHANNELS + i) * CHANNELS + o) * LANES,
                                  from + i * step, gradient + o * step, rows);
            }
        }
    }
}

#else /* Nothing of this is called. */
int64_t narrow_conv3d_supported(void) { return 0; }
int64_t narrow_conv3d_scratch(const Conv *c) { return c->width; }
void narrow_conv3d_forward(const Conv *c, uint8_t *scratch) { (void)c, (void)scratch; }
void narrow_conv3d_weight_gradient(const Conv *c, uint8_t *scratch) { (void)c, (void)scratch; }
#endif
