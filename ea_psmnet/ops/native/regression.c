/* The network's heads on the CPU. Soft-argmin: softmax over disparities and expectation of scores
 * that are upsampled by 4 along columns and disparities on the way, and the gradient of that. Convex
 * upsampling: pixels from the cells around them.
 *
 * The sums are those of `regression.py`, which derives the formulas; here a pixel's numbers stay in
 * the processor's first cache from its scores to its disparity. `native/regression.py` calls this.
 *
 * K levels, COLUMNS of a row at a time; a column of scores is four of the image, its phases.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

enum { SCALE = 4, COLUMNS = 32, PIXELS = SCALE * SCALE, AROUND = 9 };

/* Of a phase, the column's own score and that of the neighbour it leans to. */
static const float OWN[SCALE] = {0.625f, 0.875f, 0.875f, 0.625f};
static const float OTHER[SCALE] = {0.375f, 0.125f, 0.125f, 0.375f};
static const int SIDE[SCALE] = {-1, -1, 1, 1};

typedef struct {
    const float *eighths;  /* (images, levels, height, width): an eighth of the scores */
    float *disparity;      /* (images, height, SCALE * width) */
    float *total;          /* the same: the normaliser */
    const float *gradient; /* the same: of the disparity; for the backward */
    float *result;         /* as the eighths, zeros before: of the scores; for the backward */
    int64_t images, levels, height, width, threads;
    float lowest;          /* of eighths below their highest */
} Head;

typedef struct {
    const float *cells;   /* (images, height, width) */
    const float *weights; /* (images, height, width, AROUND, PIXELS): logits */
    float *result;        /* (images, SCALE * height, SCALE * width) */
    int64_t images, height, width, threads;
    float reach;          /* of cells from the heaviest; further ones do not count */
} Cells;

/* A number to be changed with them, here and in native/regression.py; and their sizes. */
const int64_t regression_interface[] = {2, sizeof(Head), sizeof(Cells)};

/* A level's columns with a neighbour on either side. */
typedef float Row[COLUMNS + 2];
typedef float Lanes[COLUMNS];

/* Which columns: `count` from `first` on, of an image's row. */
typedef struct {
    int64_t row, image, first, count;
} Place;

static inline int64_t at(const Head *head, const Place *place, int64_t level, int64_t column) {
    int64_t plane = (place->image * head->levels + level) * head->height + place->row;
    return plane * head->width + column;
}

static inline int64_t pixel(const Head *head, const Place *place, int phase, int64_t lane) {
    int64_t line = (place->image * head->height + place->row) * head->width;
    return (line + place->first + lane) * SCALE + phase;
}

static inline int64_t within(const Head *head, int64_t column) {
    return column < 0 ? 0 : column < head->width ? column : head->width - 1;
}

/* e^x of -80 to 0, to the last bits: 2^n times a polynomial. */
static inline float exponential(float x) {
    float n = rintf(x * 1.44269504f);
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float sum = 1 / 5040.f;
    sum = sum * r + 1 / 720.f;
    sum = sum * r + 1 / 120.f;
    sum = sum * r + 1 / 24.f;
    sum = sum * r + 1 / 6.f;
    sum = sum * r + 0.5f;
    sum = sum * r + 1;
    sum = sum * r + 1;
    union { uint32_t bits; float number; } power = {(uint32_t)((int32_t)n + 127) << 23};
    return sum * power.number;
}

static void look(const Head *head, const Place *place, Row *seen) {
    for (int64_t k = 0; k < head->levels; k++) {
        const float *row = head->eighths + at(head, place, k, 0);
        for (int64_t i = 0; i < COLUMNS + 2; i++)
            seen[k][i] = row[within(head, place->first + i - 1)];
    }
}

static void exponentials(const Head *head, const Row *seen, int phase, Lanes *e) {
    Lanes highest;
    for (int i = 0; i < COLUMNS; i++) highest[i] = -INFINITY;
    for (int64_t k = 0; k < head->levels; k++)
        for (int i = 0; i < COLUMNS; i++) {
            e[k][i] = OWN[phase] * seen[k][i + 1] + OTHER[phase] * seen[k][i + 1 + SIDE[phase]];
            highest[i] = e[k][i] > highest[i] ? e[k][i] : highest[i];
        }
    for (int64_t k = 0; k < head->levels; k++)
        for (int i = 0; i < COLUMNS; i++) {
            float below = e[k][i] - highest[i];
            e[k][i] = exponential(below < head->lowest ? head->lowest : below); /* or no number */
        }
}

static inline float eighth_power(float e) {
    e *= e;
    e *= e;
    return e * e;
}

static void expect(const Head *head, const Place *place, int phase, const Lanes *e) {
    Lanes total, moment;
    int64_t last = head->levels - 1;
    for (int i = 0; i < COLUMNS; i++) {
        float below = eighth_power(e[0][i]), above = eighth_power(e[last][i]);
        total[i] = 2 * (below + above);
        moment[i] = below + above * (2 * SCALE * head->levels - 3);
    }
    for (int64_t k = 0; k < last; k++)
        for (int i = 0; i < COLUMNS; i++) {
            float p = e[k][i] * e[k + 1][i], a = e[k][i] * e[k][i], b = e[k + 1][i] * e[k + 1][i];
            float mass = (a + b) * (a * a + b * b) * p;
            float offset = (a * a + 2 * a * b + 3 * b * b) * b * p;
            total[i] += mass;
            moment[i] += (SCALE * k + 2) * mass + offset;
        }
    for (int64_t i = 0; i < place->count; i++) {
        head->disparity[pixel(head, place, phase, i)] = moment[i] / total[i];
        head->total[pixel(head, place, phase, i)] = total[i];
    }
}

/* Adds a level's gradient to the columns that it depends on. */
static inline void spread(const float *gradient, int phase, float *pulled) {
    for (int i = 0; i < COLUMNS; i++) pulled[i + 1] += OWN[phase] * gradient[i];
    for (int i = 0; i < COLUMNS; i++) pulled[i + 1 + SIDE[phase]] += OTHER[phase] * gradient[i];
}

/* Each value pulls its two neighbours, by its shares of them, towards it from the mean. */
static void pull(const Head *head, const Place *place, int phase, const Lanes *e, Row *pulled) {
    Lanes weight, mean, own, next;
    int64_t last = head->levels - 1;
    for (int64_t i = 0; i < COLUMNS; i++) {
        int64_t here = pixel(head, place, phase, i < place->count ? i : 0);
        mean[i] = head->disparity[here];
        weight[i] = i < place->count ? head->gradient[here] / head->total[here] : 0;
        next[i] = weight[i] * eighth_power(e[0][i]) * (1 - 2 * mean[i]);
    }
    for (int64_t k = 0; k < last; k++) {
        for (int i = 0; i < COLUMNS; i++) {
            float p = e[k][i] * e[k + 1][i], a = e[k][i] * e[k][i], b = e[k + 1][i] * e[k + 1][i];
            float aa = a * a, ab = a * b, bb = b * b, scale = p * weight[i];
            float gap = SCALE * k + 2 - mean[i];
            float both = ((aa + 2 * ab + 3 * bb) * b + gap * (a + b) * (aa + bb)) * scale;
            float shares = (7 * a + 5 * b) * aa + (3 * a + b) * bb;
            float left = (shares * gap + (5 * aa + 6 * ab + 3 * bb) * b) * (scale / 8);
            own[i] = next[i] + left;
            next[i] = both - left;
        }
        spread(own, phase, pulled[k]);
    }
    float outermost = 2 * SCALE * head->levels - 3;
    for (int i = 0; i < COLUMNS; i++)
        own[i] = next[i] + weight[i] * eighth_power(e[last][i]) * (outermost - 2 * mean[i]);
    spread(own, phase, pulled[last]);
}

static void hand_out(const Head *head, const Place *place, const Row *pulled) {
    for (int64_t k = 0; k < head->levels; k++) {
        float *row = head->result + at(head, place, k, 0);
        for (int64_t i = 0; i < place->count + 2; i++)
            row[within(head, place->first + i - 1)] += pulled[k][i];
    }
}

static void run(const Head *head, int backward) {
#pragma omp parallel for num_threads(head->threads) schedule(static)
    for (int64_t line = 0; line < head->images * head->height; line++) {
        Row seen[head->levels], pulled[head->levels];
        Lanes e[head->levels];
        for (int64_t first = 0; first < head->width; first += COLUMNS) {
            int64_t left = head->width - first;
            Place place = {line % head->height, line / head->height, first,
                           left < COLUMNS ? left : COLUMNS};
            look(head, &place, seen);
            if (backward) memset(pulled, 0, sizeof pulled);
            for (int phase = 0; phase < SCALE; phase++) {
                exponentials(head, seen, phase, e);
                if (backward) pull(head, &place, phase, e, pulled);
                else expect(head, &place, phase, e);
            }
            if (backward) hand_out(head, &place, pulled);
        }
    }
}

void soft_argmin_forward(const Head *head) { run(head, 0); }

void soft_argmin_backward(const Head *head) { run(head, 1); }

#if defined(__AVX512F__)
enum { LANES = 16 };
#elif defined(__AVX__)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif

/* A number for each of some pixels of a cell. */
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t mask __attribute__((vector_size(4 * LANES)));

static inline vec choose(mask which, vec yes, vec no) {
    return (vec)((which & (mask)yes) | (~which & (mask)no));
}

/* LANES pixels of a cell; `around` are the nine cells around it, row by row. */
static inline vec combine(const float *around, const float *logits, float reach) {
    vec shares[AROUND], none = {0}, highest = none - INFINITY, heaviest = none;
    for (int n = 0; n < AROUND; n++) {
        vec logit = *(const vec *)(logits + n * PIXELS);
        mask more = logit > highest;
        heaviest = choose(more, none + around[n], heaviest);
        highest = choose(more, logit, highest);
    }
    for (int n = 0; n < AROUND; n++) {
        vec below = *(const vec *)(logits + n * PIXELS) - highest;
        shares[n] = choose(below < -80, none - 80, below);
    }
    float *each = (float *)shares;
    for (int i = 0; i < AROUND * LANES; i++) each[i] = exponential(each[i]);
    vec total = none, sum = none;
    for (int n = 0; n < AROUND; n++) {
        vec away = around[n] - heaviest;
        vec share = choose((away <= reach) & (away >= -reach), shares[n], none);
        total += share;
        sum += share * around[n];
    }
    return sum / total;
}

void convex_upsampling(const Cells *given) {
    int64_t height = given->height, width = given->width;
#pragma omp parallel for num_threads(given->threads) schedule(static)
    for (int64_t line = 0; line < given->images * height; line++) {
        int64_t row = line % height;
        const float *here = given->cells + line * width;
        const float *rows[3] = {row ? here - width : here, here,
                                row < height - 1 ? here + width : here};
        float around[AROUND], pixels[PIXELS];
        for (int64_t column = 0; column < width; column++) {
            int64_t columns[3] = {column ? column - 1 : 0, column,
                                  column < width - 1 ? column + 1 : column};
            for (int n = 0; n < AROUND; n++) around[n] = rows[n / 3][columns[n % 3]];
            const float *logits = given->weights + (line * width + column) * AROUND * PIXELS;
            for (int i = 0; i < PIXELS; i += LANES)
                *(vec *)(pixels + i) = combine(around, logits + i, given->reach);
            float *result = given->result + (line * SCALE * width + column) * SCALE;
            for (int y = 0; y < SCALE; y++)
                memcpy(result + y * SCALE * width, pixels + y * SCALE, SCALE * sizeof *result);
        }
    }
}
