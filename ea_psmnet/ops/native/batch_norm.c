/* Batch normalisation of float32 or bfloat16 pixels with adjacent channels: see `batch_norm.py`.
 *
 * A row is as many pixels as fill whole vectors, and its values are lanes: every channel has
 * lanes / channels of them.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_LANES = 2048, BLOCK = 256 /* rows that are added up in float32 */ };

typedef struct {
    const void *input, *gradient; /* (rows, lanes) */
    void *output;
    const float *weight, *bias; /* (channels,), as all that follow */
    float *mean, *scale; /* of the batch: written by the forward, read by the backward */
    float *running_mean, *running_var; /* null, or updated */
    float *weight_gradient, *bias_gradient;
    int64_t rows, lanes, channels, half, threads;
    double momentum, eps;
} Norm;

/* For the caller to compare: a version, and the sizes of the structures. */
const int64_t batch_norm_interface[] = {2, sizeof(Norm)};

extern int omp_get_thread_num(void);

static inline float value(const void *values, int64_t k, const int half) {
    if (!half) return ((const float *)values)[k];
    const uint32_t bits = (uint32_t)((const uint16_t *)values)[k] << 16;
    float result;
    memcpy(&result, &bits, 4);
    return result;
}

static inline void set(void *values, int64_t k, float value, const int half) {
    if (!half) {
        ((float *)values)[k] = value;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &value, 4);
    ((uint16_t *)values)[k] = (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static inline void repeat(const Norm *n, float *lanes, const float *values) {
    for (int64_t k = 0; k < n->lanes; k++) lanes[k] = values[k % n->channels];
}

/* Sums over all pixels of two terms, for every channel: of the input's distance from `mean` and its
 * square, or of the gradient and its product with that distance. Returns 0 without memory. */
static inline __attribute__((always_inline)) int sum(const Norm *n, const float *mean,
                                                     const int of_gradient, double *first,
                                                     double *second, const int half) {
    const int64_t lanes = n->lanes;
    double *sums = calloc(n->threads * 2 * lanes, sizeof(double));
    if (!sums) return 0;
    float middle[MOST_LANES];
    repeat(n, middle, mean);
#pragma omp parallel num_threads(n->threads)
    {
        double *own = sums + omp_get_thread_num() * 2 * lanes;
#pragma omp for schedule(static)
        for (int64_t start = 0; start < n->rows; start += BLOCK) {
            const int64_t stop = start + BLOCK < n->rows ? start + BLOCK : n->rows;
            float a[MOST_LANES], b[MOST_LANES];
            memset(a, 0, lanes * 4);
            memset(b, 0, lanes * 4);
            for (int64_t row = start; row < stop; row++) {
                const int64_t at = row * lanes;
                if (of_gradient) {
                    for (int64_t k = 0; k < lanes; k++) {
                        const float term = value(n->gradient, at + k, half);
                        a[k] += term;
                        b[k] += term * (value(n->input, at + k, half) - middle[k]);
                    }
                } else {
                    for (int64_t k = 0; k < lanes; k++) {
                        const float term = value(n->input, at + k, half) - middle[k];
                        a[k] += term;
                        b[k] += term * term;
                    }
                }
            }
            for (int64_t k = 0; k < lanes; k++) {
                own[k] += a[k];
                own[lanes + k] += b[k];
            }
        }
    }
    for (int64_t c = 0; c < n->channels; c++) first[c] = second[c] = 0;
    for (int64_t t = 0; t < n->threads; t++)
        for (int64_t k = 0; k < lanes; k++) {
            first[k % n->channels] += sums[2 * t * lanes + k];
            second[k % n->channels] += sums[(2 * t + 1) * lanes + k];
        }
    free(sums);
    return 1;
}

static inline __attribute__((always_inline)) int forward(const Norm *n, const int half) {
    const double count = (double)n->rows * n->lanes / n->channels;
    double total[MOST_LANES], squares[MOST_LANES];
    for (int64_t c = 0; c < n->channels; c++) n->mean[c] = 0;
    if (!sum(n, n->mean, 0, total, squares, half)) return 0;
    for (int64_t c = 0; c < n->channels; c++) n->mean[c] = (float)(total[c] / count);
    if (!sum(n, n->mean, 0, total, squares, half)) return 0; /* around the mean: no digits are lost */
    float gain[MOST_LANES], mean[MOST_LANES], scales[MOST_LANES], bias[MOST_LANES];
    for (int64_t c = 0; c < n->channels; c++) {
        const double error = total[c] / count, variance = squares[c] / count - error * error;
        n->scale[c] = (float)(1 / sqrt(variance + n->eps));
        scales[c] = n->scale[c] * n->weight[c];
        if (n->running_mean) {
            const double unbiased = variance * count / (count > 1 ? count - 1 : 1);
            n->running_mean[c] += (float)(n->momentum * (n->mean[c] - n->running_mean[c]));
            n->running_var[c] += (float)(n->momentum * (unbiased - n->running_var[c]));
        }
    }
    repeat(n, gain, scales);
    repeat(n, mean, n->mean);
    repeat(n, bias, n->bias);
#pragma omp parallel for num_threads(n->threads) schedule(static)
    for (int64_t row = 0; row < n->rows; row++) {
        const int64_t at = row * n->lanes;
        for (int64_t k = 0; k < n->lanes; k++) {
            const float centred = value(n->input, at + k, half) - mean[k];
            set(n->output, at + k, centred * gain[k] + bias[k], half);
        }
    }
    return 1;
}

/* Ioffe and Szegedy, "Batch Normalization", ICML 2015, section 3. */
static inline __attribute__((always_inline)) int backward(const Norm *n, const int half) {
    const double count = (double)n->rows * n->lanes / n->channels;
    double total[MOST_LANES], products[MOST_LANES];
    if (!sum(n, n->mean, 1, total, products, half)) return 0;
    float gain[MOST_LANES], slope[MOST_LANES], shift[MOST_LANES], mean[MOST_LANES];
    float gains[MOST_LANES], slopes[MOST_LANES], shifts[MOST_LANES];
    for (int64_t c = 0; c < n->channels; c++) {
        gains[c] = n->scale[c] * n->weight[c];
        slopes[c] = (float)(-gains[c] * n->scale[c] * n->scale[c] * products[c] / count);
        shifts[c] = (float)(-gains[c] * total[c] / count);
        n->weight_gradient[c] = (float)(products[c] * n->scale[c]);
        n->bias_gradient[c] = (float)total[c];
    }
    repeat(n, gain, gains);
    repeat(n, slope, slopes);
    repeat(n, shift, shifts);
    repeat(n, mean, n->mean);
#pragma omp parallel for num_threads(n->threads) schedule(static)
    for (int64_t row = 0; row < n->rows; row++) {
        const int64_t at = row * n->lanes;
        for (int64_t k = 0; k < n->lanes; k++) {
            const float centred = value(n->input, at + k, half) - mean[k];
            const float part = value(n->gradient, at + k, half) * gain[k];
            set(n->output, at + k, part + centred * slope[k] + shift[k], half);
        }
    }
    return 1;
}

int64_t batch_norm_forward(const Norm *n) { return n->half ? forward(n, 1) : forward(n, 0); }

int64_t batch_norm_backward(const Norm *n) { return n->half ? backward(n, 1) : backward(n, 0); }
