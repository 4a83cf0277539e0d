/* Group-wise correlation volumes on the CPU, forward and backward: see `group_correlation.py`.
 *
 * Features have their groups innermost, (images, height, width, channels, groups), so that one
 * vector holds a channel of all groups; volumes are (images, levels, height, width, groups).
 */
#include <stdint.h>
#include <string.h>

enum { MOST_LANES = 512 }; /* channels times groups of a pixel */

typedef struct {
    const float *left, *right;
    void *volume; /* read by the backward, as the gradient */
    float *left_gradient, *right_gradient;
    int64_t images, levels, height, width, channels, groups, half, threads;
} Correlation;

/* For the caller to compare: a version, and the sizes of the structures. */
const int64_t group_correlation_interface[] = {1, sizeof(Correlation)};

static inline uint16_t to_half(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static inline float from_half(uint16_t value) {
    uint32_t bits = (uint32_t)value << 16;
    float wide;
    memcpy(&wide, &bits, 4);
    return wide;
}

static inline int64_t cell(const Correlation *c, int64_t image, int64_t level, int64_t row) {
    return ((image * c->levels + level) * c->height + row) * c->width * c->groups;
}

static inline void forward_row(const Correlation *c, int64_t line, const int groups) {
    const int64_t image = line / c->height, row = line % c->height, lanes = c->channels * groups;
    const float *left = c->left + line * c->width * lanes;
    const float *right = c->right + line * c->width * lanes;
    for (int64_t level = 0; level < c->levels; level++) {
        const int64_t start = cell(c, image, level, row);
        const int64_t hidden = level < c->width ? level : c->width;
        if (c->half) memset((uint16_t *)c->volume + start, 0, hidden * groups * 2);
        else memset((float *)c->volume + start, 0, hidden * groups * 4);
        for (int64_t x = hidden; x < c->width; x++) {
            const float *a = left + x * lanes, *b = right + (x - level) * lanes;
            float sum[64];
            for (int group = 0; group < groups; group++) sum[group] = 0;
            for (int64_t channel = 0; channel < c->channels; channel++)
                for (int group = 0; group < groups; group++)
                    sum[group] += a[channel * groups + group] * b[channel * groups + group];
            if (c->half) {
                uint16_t *out = (uint16_t *)c->volume + start + x * groups;
                for (int group = 0; group < groups; group++) out[group] = to_half(sum[group]);
            } else {
                memcpy((float *)c->volume + start + x * groups, sum, groups * 4);
            }
        }
    }
}

static inline void backward_row(const Correlation *c, int64_t line, const int groups) {
    const int64_t image = line / c->height, row = line % c->height, lanes = c->channels * groups;
    const int64_t first = line * c->width * lanes;
    const float *left = c->left + first, *right = c->right + first;
    float *of_left = c->left_gradient + first, *of_right = c->right_gradient + first;
    memset(of_right, 0, c->width * lanes * 4);
    for (int64_t x = 0; x < c->width; x++) {
        const int64_t seen = x + 1 < c->levels ? x + 1 : c->levels;
        float total[MOST_LANES];
        memset(total, 0, lanes * 4);
        const float *a = left + x * lanes;
        for (int64_t level = 0; level < seen; level++) {
            const int64_t at = cell(c, image, level, row) + x * groups;
            float weight[64];
            if (c->half) {
                const uint16_t *in = (const uint16_t *)c->volume + at;
                for (int group = 0; group < groups; group++) weight[group] = from_half(in[group]);
            } else {
                memcpy(weight, (const float *)c->volume + at, groups * 4);
            }
            const float *b = right + (x - level) * lanes;
            float *of_b = of_right + (x - level) * lanes;
            for (int64_t channel = 0; channel < c->channels; channel++)
                for (int group = 0; group < groups; group++) {
                    const int64_t lane = channel * groups + group;
                    total[lane] += weight[group] * b[lane];
                    of_b[lane] += weight[group] * a[lane];
                }
        }
        memcpy(of_left + x * lanes, total, lanes * 4);
    }
}

/* The usual numbers of groups as constants, so that loops over them become vectors. */
#define DISPATCH(function)                                   \
    switch (c->groups) {                                     \
        case 4: function(c, line, 4); break;                 \
        case 8: function(c, line, 8); break;                 \
        case 16: function(c, line, 16); break;               \
        case 32: function(c, line, 32); break;               \
        default: function(c, line, (int)c->groups);          \
    }

void correlation_forward(const Correlation *c) {
#pragma omp parallel for num_threads(c->threads) schedule(dynamic, 4)
    for (int64_t line = 0; line < c->images * c->height; line++) DISPATCH(forward_row)
}

void correlation_backward(const Correlation *c) {
#pragma omp parallel for num_threads(c->threads) schedule(dynamic, 4)
    for (int64_t line = 0; line < c->images * c->height; line++) DISPATCH(backward_row)
}
