/* Gradients of the kernels of 3x3 and 3x3x3 convolutions: see `kernel_gradient.py`.
 *
 * Tensors are float32 and channels-last. A register holds some outputs of a pixel's gradient, others
 * the sums of some inputs and of the three taps along a row.
 *
 * C inputs (a multiple of INPUTS), N outputs (a multiple of LANES).
 */
#include <omp.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
enum { LANES = 16 };
#elif defined(__AVX__)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif

enum { INPUTS = 4 /* at a time; with three taps each twelve registers of sums */ };

#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* Where a tensor (images, planes, rows, columns, channels) lies: steps count numbers. */
typedef struct {
    const float *data;
    int64_t image, plane, row, column;
    int64_t depth, height, width;
} Layout;

typedef struct {
    Layout input, gradient;
    float *sums; /* (threads, 3 or 1, 3, 3, C, N) */
    int64_t images, inputs, outputs, stride, dilation;
    int64_t volume; /* whether there are taps along planes */
    int64_t threads;
} Job;

/* For the caller to compare: a version, and the sizes of the structures. */
const int64_t kernel_gradient_interface[] = {1, sizeof(Layout), sizeof(Job)};

int64_t kernel_gradient_lanes(void) { return LANES; }

/* A row of a tensor; null beyond it. */
static const float *find_row(const Layout *l, int64_t image, int64_t plane, int64_t row) {
    if (plane < 0 || plane >= l->depth || row < 0 || row >= l->height) return 0;
    return l->data + image * l->image + plane * l->plane + row * l->row;
}

/* Adds up a row's part of three taps along the row at stride 1, for some inputs and outputs. Each
 * gradient stays in a register for the three pixels that it meets. */
INLINE void add_near(const Job *j, vec own[3][INPUTS], const float *input, const float *gradient) {
    const int64_t step = j->gradient.column, reach = j->dilation, width = j->gradient.width;
    const vec none = {0};
    for (int64_t first = 0; first < reach && first < width; first++) {
        vec before = none, here = *(const vec *)(gradient + first * step);
        for (int64_t x = first; x < width; x += reach) {
            const int64_t next = x + reach;
            const vec behind = next < width ? *(const vec *)(gradient + next * step) : none;
            const float *seen = input + x * j->input.column;
            for (int i = 0; i < INPUTS; i++) {
                own[0][i] += behind * seen[i];
                own[1][i] += here * seen[i];
                own[2][i] += before * seen[i];
            }
            before = here;
            here = behind;
        }
    }
}

/* The same at any stride, for the pixels `from` to `to`; `inside` if all their taps are. */
INLINE void add_far(const Job *j, vec own[3][INPUTS], const float *input, const float *gradient,
                    int64_t from, int64_t to, const int inside) {
    const int64_t step = j->input.column, reach = j->dilation * step;
    for (int64_t x = from; x < to; x++) {
        const int64_t at = x * j->stride;
        const vec here = *(const vec *)(gradient + x * j->gradient.column);
        const float *seen = input + at * step;
        for (int i = 0; i < INPUTS; i++) {
            if (inside || at >= j->dilation) own[0][i] += here * seen[i - reach];
            own[1][i] += here * seen[i];
            if (inside || at + j->dilation < j->input.width) own[2][i] += here * seen[i + reach];
        }
    }
}

static void add_row(const Job *j, float *sums, const float *input, const float *gradient) {
    vec own[3][INPUTS] = {0}; /* of one row, so that few digits are lost */
    if (j->stride == 1) {
        add_near(j, own, input, gradient);
    } else {
        const int64_t width = j->gradient.width, first = j->dilation < width ? j->dilation : width;
        const int64_t last = width - first > first ? width - first : first;
        add_far(j, own, input, gradient, 0, first, 0);
        add_far(j, own, input, gradient, first, last, 1);
        add_far(j, own, input, gradient, last, width, 0);
    }
    for (int tap = 0; tap < 3; tap++)
        for (int i = 0; i < INPUTS; i++)
            *(vec *)(sums + (tap * j->inputs + i) * j->outputs) += own[tap][i];
}

void kernel_gradient_compute(const Job *j) {
    const Layout *g = &j->gradient;
    const int taps = j->volume ? 9 : 3; /* along planes and rows */
    const int64_t tap = 3 * j->inputs * j->outputs, size = taps * tap;
    memset(j->sums, 0, j->threads * size * sizeof(float));
#pragma omp parallel num_threads(j->threads)
    {
        float *own = j->sums + omp_get_thread_num() * size;
#pragma omp for schedule(static) /* the same sums every time */
        for (int64_t n = 0; n < j->images * g->depth * g->height; n++) {
            const int64_t row = n % g->height, plane = n / g->height % g->depth;
            const int64_t image = n / g->height / g->depth;
            const float *gradient = find_row(g, image, plane, row);
            for (int k = 0; k < taps; k++) {
                const int64_t y = row * j->stride + (k % 3 - 1) * j->dilation;
                const int64_t z = j->volume ? plane * j->stride + k / 3 - 1 : plane;
                const float *input = find_row(&j->input, image, z, y);
                if (!input) continue;
                for (int64_t i = 0; i < j->inputs; i += INPUTS)
                    for (int64_t o = 0; o < j->outputs; o += LANES)
                        add_row(j, own + k * tap + i * j->outputs + o, input + i, gradient + o);
            }
        }
    }
}
