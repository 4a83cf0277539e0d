/* 3x3x3 convolutions of volumes to one channel on the CPU: see `score_conv.py`.
 *
 * A vector holds LANES adjacent channels of a cell; BLOCK cells of a row keep a vector of sums each,
 * whose lanes are added up at the end.
 */
#include <omp.h>
#include <stdint.h>
#include <string.h>

enum { LANES = 8, BLOCK = 8, SIDE = 3, MOST_CHANNELS = 32 };

#define INLINE static inline __attribute__((always_inline))

typedef float Lanes __attribute__((vector_size(LANES * 4)));
typedef Lanes Near __attribute__((aligned(4), may_alias)); /* in memory */
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4)));

typedef struct {
    const void *volume;  /* (depth, height, width, channels): float32, or bfloat16 if `half` */
    const float *weight; /* (SIDE, SIDE, SIDE, channels) */
    float *total;        /* (levels, height, width): the sums are added to it */
    int64_t depth, levels, height, width, channels, start, half, threads;
} Score; /* start: the level of the volume's first plane */

typedef struct {
    const float *gradient; /* of the score, with a margin of zeros: (depth + 2, height + 2, width + 2) */
    const float *volume;   /* (depth, height, width, channels) */
    const float *weight;   /* (SIDE, SIDE, SIDE, channels) */
    float *of_volume;      /* (depth, height, width, channels) */
    float *of_weight;      /* (threads, SIDE, SIDE, SIDE, channels) */
    int64_t depth, height, width, channels, threads;
} Gradient;

/* For the caller to compare: a version, and the sizes of the structures. */
const int64_t score_conv_interface[] = {2, sizeof(Score), sizeof(Gradient)};

INLINE Lanes load(const char *values, const int half) {
    Lanes lanes;
    if (half) {
        Halves halves;
        memcpy(&halves, values, sizeof halves);
        const Words words = __builtin_convertvector(halves, Words) << 16;
        memcpy(&lanes, &words, sizeof lanes);
    } else {
        memcpy(&lanes, values, sizeof lanes);
    }
    return lanes;
}

/* Add to the cells from `first` on of a row of scores. Where `inside`, all neighbours exist. */
INLINE void add_block(const Score *s, int64_t level, int64_t row, int64_t first, const int inside,
                      const int half, const int channels) {
    static const char zeros[MOST_CHANNELS * 4];
    const int size = half ? 2 : 4;
    Lanes sums[BLOCK];
    for (int k = 0; k < BLOCK; k++) sums[k] = (Lanes){0};
    for (int kd = 0; kd < SIDE; kd++) {
        const int64_t plane = level - s->start + kd - 1;
        if (plane < 0 || plane >= s->depth) continue;
        for (int ky = 0; ky < SIDE; ky++) {
            const int64_t line = row + ky - 1;
            if (line < 0 || line >= s->height) continue;
            const char *cells = (const char *)s->volume +
                                ((plane * s->height + line) * s->width + first) * channels * size;
            const float *weight = s->weight + (kd * SIDE + ky) * SIDE * channels;
            for (int channel = 0; channel < channels; channel += LANES) {
                Lanes left, middle, right;
                memcpy(&left, weight + channel, sizeof left);
                memcpy(&middle, weight + channels + channel, sizeof middle);
                memcpy(&right, weight + 2 * channels + channel, sizeof right);
#pragma GCC unroll 16
                for (int k = -1; k <= BLOCK; k++) {
                    const int there = inside || (first + k >= 0 && first + k < s->width);
                    const char *cell = there ? cells + k * channels * size : zeros;
                    const Lanes value = load(cell + channel * size, half);
                    if (k + 1 < BLOCK) sums[k + 1] += value * left;
                    if (k >= 0 && k < BLOCK) sums[k] += value * middle;
                    if (k >= 1) sums[k - 1] += value * right;
                }
            }
        }
    }
    float *out = s->total + (level * s->height + row) * s->width + first, added[BLOCK];
    for (int k = 0; k < BLOCK; k++) {
        added[k] = 0;
        for (int lane = 0; lane < LANES; lane++) added[k] += sums[k][lane];
    }
    const int64_t left = s->width - first;
    for (int k = 0; k < (inside || left > BLOCK ? BLOCK : left); k++) out[k] += added[k];
}

INLINE void add_row(const Score *s, int64_t level, int64_t row, const int half,
                    const int channels) {
    for (int64_t first = 0; first < s->width; first += BLOCK) {
        const int inside = first > 0 && first + BLOCK < s->width;
        if (inside) add_block(s, level, row, first, 1, half, channels);
        else add_block(s, level, row, first, 0, half, channels);
    }
}

#define ADD_ROW(channels)                                   \
    if (s->half) add_row(s, level, row, 1, channels);       \
    else add_row(s, level, row, 0, channels)

void score_conv_add(const Score *s) {
    const int64_t from = s->start > 0 ? s->start - 1 : 0, end = s->start + s->depth + 1;
    const int64_t lines = ((end < s->levels ? end : s->levels) - from) * s->height;
#pragma omp parallel for num_threads(s->threads) schedule(dynamic, 4)
    for (int64_t line = 0; line < lines; line++) {
        const int64_t level = from + line / s->height, row = line % s->height;
        switch (s->channels) { /* constants, so that the compiler unrolls all loops over them */
            case 8: ADD_ROW(8); break;
            case 16: ADD_ROW(16); break;
            case 32: ADD_ROW(32); break;
        }
    }
}

/* Gradients in float32 ---------------------------------------------------------------------------
 *
 * A cell at (z, y, x) meets the scores at (z + 1 - kd, y + 1 - ky, x + 1 - kx).
 */

/* The row of scores' gradients that a row of cells meets by its taps of kx = 2. */
INLINE const float *met(const Gradient *g, int64_t plane, int64_t row, int64_t kd, int64_t ky) {
    return g->gradient + ((plane + 2 - kd) * (g->height + 2) + row + 2 - ky) * (g->width + 2);
}

/* Gradients of some channels of `count` cells. */
INLINE void set_cells(const Gradient *g, int64_t plane, int64_t row, int64_t first, int64_t channel,
                      const int count) {
    const int64_t channels = g->channels;
    Lanes sums[BLOCK] = {0};
    for (int k = 0; k < SIDE * SIDE; k++) {
        const float *scores = met(g, plane, row, k / SIDE, k % SIDE) + first;
        const float *weight = g->weight + SIDE * k * channels + channel;
        const Lanes left = *(const Near *)weight, middle = *(const Near *)(weight + channels);
        const Lanes right = *(const Near *)(weight + 2 * channels);
#pragma GCC unroll 8
        for (int n = 0; n < count; n++)
            sums[n] += right * scores[n] + middle * scores[n + 1] + left * scores[n + 2];
    }
    float *out = g->of_volume + ((plane * g->height + row) * g->width + first) * channels + channel;
    for (int n = 0; n < count; n++) *(Near *)(out + n * channels) = sums[n];
}

void score_conv_of_volume(const Gradient *g) {
#pragma omp parallel for num_threads(g->threads) schedule(static)
    for (int64_t line = 0; line < g->depth * g->height; line++) {
        const int64_t plane = line / g->height, row = line % g->height;
        for (int64_t channel = 0; channel < g->channels; channel += LANES) {
            int64_t x = 0;
            for (; x + BLOCK <= g->width; x += BLOCK) set_cells(g, plane, row, x, channel, BLOCK);
            for (; x < g->width; x++) set_cells(g, plane, row, x, channel, 1);
        }
    }
}

void score_conv_of_weight(const Gradient *g) {
    const int64_t size = SIDE * SIDE * SIDE * g->channels;
    memset(g->of_weight, 0, g->threads * size * sizeof(float));
#pragma omp parallel num_threads(g->threads)
    {
        float *own = g->of_weight + omp_get_thread_num() * size;
#pragma omp for schedule(static) /* the same sums every time */
        for (int64_t line = 0; line < g->depth * g->height; line++) {
            const int64_t plane = line / g->height, row = line % g->height;
            for (int64_t n = 0; n < SIDE * g->channels; n += LANES) {
                const int64_t kd = n / g->channels, channel = n % g->channels;
                const float *cells = g->volume + line * g->width * g->channels + channel;
                const float *scores[SIDE];
                for (int ky = 0; ky < SIDE; ky++) scores[ky] = met(g, plane, row, kd, ky);
                Lanes sums[SIDE][SIDE] = {0}; /* of one row, so that few digits are lost */
                for (int64_t x = 0; x < g->width; x++) {
                    const Lanes cell = *(const Near *)(cells + x * g->channels);
                    for (int ky = 0; ky < SIDE; ky++)
                        for (int kx = 0; kx < SIDE; kx++)
                            sums[ky][kx] += cell * scores[ky][x + 2 - kx];
                }
                for (int k = 0; k < SIDE * SIDE; k++)
                    *(Near *)(own + (kd * SIDE * SIDE + k) * g->channels + channel) +=
                        sums[k / SIDE][k % SIDE];
            }
        }
    }
}
