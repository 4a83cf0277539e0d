/* 3x3x3 convolutions of volumes to one channel on the CPU: see `score_conv.py`.
 *
 * A vector holds LANES adjacent channels of a cell; BLOCK cells of a row keep a vector of sums each,
 * whose lanes are added up at the end.
 */
#include <stdint.h>
#include <string.h>

enum { LANES = 8, BLOCK = 8, SIDE = 3, MOST_CHANNELS = 32 };

#define INLINE static inline __attribute__((always_inline))

typedef float Lanes __attribute__((vector_size(LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4)));

typedef struct {
    const void *volume;  /* (depth, height, width, channels): float32, or bfloat16 if `half` */
    const float *weight; /* (SIDE, SIDE, SIDE, channels) */
    float *total;        /* (levels, height, width): the sums are added to it */
    int64_t depth, levels, height, width, channels, start, half, threads;
} Score; /* start: the level of the volume's first plane */

/* For the caller to compare: a version, and the sizes of the structures. */
const int64_t score_conv_interface[] = {1, sizeof(Score)};

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
