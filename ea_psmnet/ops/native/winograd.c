/* 3x3 and 3x3x3 convolutions by Winograd's F(4, 3) along rows and columns and F(2, 3) along
 * disparities: 2.25 multiplications an output instead of 9, and 4.5 instead of 27.
 * Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016.
 *
 * Tensors are channels-last, float32 or bfloat16; intermediate values are float32, except for the
 * factors of narrow convolutions. Twelve tiles of 4 x 4 outputs at a time go through all
 * disparities, so that intermediate values stay in the processor's cache. `winograd.py` calls this
 * and makes the kernels.
 *
 * C inputs, N outputs (both multiples of LANES), S = 36 sums of a tile, T = 12 tiles.
 */
#include <omp.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

/* Numbers a register holds, and how many tiles' sums, two registers each, fit all registers. */
#if defined(__AVX512F__)
enum { LANES = 16, BLOCK = 12 };
#elif defined(__AVX__)
enum { LANES = 8, BLOCK = 6 };
#elif defined(__aarch64__)
enum { LANES = 4, BLOCK = 12 };
#else
enum { LANES = 4, BLOCK = 6 };
#endif

enum { TAPS = 6, SUMS = TAPS * TAPS, TILE = 4, TILES = 12, DEPTHS = 4, ALL_TAPS = 63 };

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

typedef int32_t pair __attribute__((may_alias));

#define INLINE static inline __attribute__((always_inline))

/* Where a tensor (images, disparities, rows, columns, channels) lies: steps count numbers. */
typedef struct {
    void *data;
    int64_t image, plane, row, column;
} Layout;

typedef struct {
    Layout input, output;
    const float *kernels; /* (S, C, N), or (S, 4, C, N) with taps along disparities */
    const float *bias;    /* (N) */
    int64_t images, height, width, inputs, outputs, dilation;
    int64_t depth, input_depth; /* disparities of the output and of the input */
    int64_t first;              /* of the input's disparities, seen by the output's first */
    int64_t volume;             /* whether there are taps along disparities */
    int64_t half;               /* the tensors are bfloat16 */
    int64_t narrow;             /* so are the factors, and the kernels, two of C side by side */
    int64_t add;                /* to the values that the output holds */
    int64_t positive;           /* negative outputs become zero */
    int64_t stream;             /* write past the caches; the output is aligned to 64 bytes */
    int64_t threads;
} Job;

/* A number to be changed with the structures, here and in winograd.py; and their sizes. */
const int64_t winograd_interface[] = {1, sizeof(Layout), sizeof(Job)};

typedef struct {
    int64_t y, x;
} Place;

int64_t winograd_lanes(void) { return LANES; }

/* Whether the processor multiplies bfloat16, and faster than float32. */
int64_t winograd_narrow(void) {
#if defined(__AVX512BF16__)
    return 1;
#else
    return 0;
#endif
}

/* ---- numbers ---- */

INLINE vec load(const Layout *from, int64_t at, int half) {
    if (!half) return *(const vec *)((const float *)from->data + at);
    halves narrow = *(const halves *)((const uint16_t *)from->data + at);
#if defined(__AVX512F__) /* compilers make two halves of the conversion below */
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)narrow), 16);
#else
    return (vec)(__builtin_convertvector(narrow, words) << 16);
#endif
}

/* To bfloat16: the nearest, ties to even. */
INLINE halves narrowed(vec value) {
#if defined(__AVX512BF16__)
    return (halves)_mm512_cvtneps_pbh((__m512)value);
#else
    words bits = (words)value, odd = (bits >> 16) & 1, no_number = (words)(value != value);
    words rounded = (bits + 0x7fff + odd) >> 16;
    return __builtin_convertvector((no_number & 0x7fc0) | (~no_number & rounded), halves);
#endif
}

INLINE void store(void *to, int64_t at, vec value, int half) {
    if (half) *(halves *)((uint16_t *)to + at) = narrowed(value);
    else *(vec *)((float *)to + at) = value;
}

INLINE void put(const Job *job, int64_t at, vec value, int half) {
#if defined(__AVX512F__)
    if (job->stream) {
        _mm512_stream_ps((float *)job->output.data + at, (__m512)value);
        return;
    }
#endif
    store(job->output.data, at, value, half);
}

/* ---- Winograd's sums along one axis: points 0, infinity, ±sqrt(1/2), ±sqrt(2) ---- */

static const float NEAR = 0.70710678118654752f, FAR = 1.41421356237309505f;

/* Six inputs to six sums. */
INLINE void sum_six(const vec *d, vec *sums) {
    vec near_even = d[4] - 2 * d[2], near_odd = NEAR * (d[3] - 2 * d[1]);
    vec far_even = d[4] - 0.5f * d[2], far_odd = FAR * (d[3] - 0.5f * d[1]);
    sums[0] = d[0] + d[4] - 2.5f * d[2];
    sums[1] = near_even + near_odd;
    sums[2] = near_even - near_odd;
    sums[3] = far_even + far_odd;
    sums[4] = far_even - far_odd;
    sums[5] = d[1] + d[5] - 2.5f * d[3];
}

/* Six products to four outputs. */
INLINE void combine_six(const vec *m, vec *out) {
    vec near_even = m[1] + m[2], near_odd = m[1] - m[2];
    vec far_even = m[3] + m[4], far_odd = m[3] - m[4];
    out[0] = m[0] + near_even + far_even;
    out[1] = NEAR * (near_odd + 2 * far_odd);
    out[2] = 0.5f * (near_even + 4 * far_even);
    out[3] = 0.5f * NEAR * (near_odd + 8 * far_odd) + m[5];
}

/* ---- tiles ---- */

/* Tiles along an axis. Every `dilation`th place belongs to the same grid; grids come in turn. */
static int64_t tiles_of_grid(int64_t grid, int64_t length, int64_t dilation) {
    int64_t places = (length - grid + dilation - 1) / dilation;
    return (places + TILE - 1) / TILE;
}

static int64_t count_tiles(int64_t length, int64_t dilation) {
    int64_t count = 0;
    for (int64_t grid = 0; grid < dilation && grid < length; grid++)
        count += tiles_of_grid(grid, length, dilation);
    return count;
}

static int64_t origin(int64_t tile, int64_t length, int64_t dilation) {
    int64_t grid = 0;
    for (; tile >= tiles_of_grid(grid, length, dilation); grid++)
        tile -= tiles_of_grid(grid, length, dilation);
    return grid + tile * TILE * dilation;
}

/* Six places along an axis from one before `first` on: whether each is on the map, a bit each. */
INLINE int on_map(int64_t first, int64_t dilation, int64_t length) {
    int bits = 0;
    for (int i = 0; i < TAPS; i++) {
        int64_t place = first + (i - 1) * dilation;
        bits |= (place >= 0 && place < length) << i;
    }
    return bits;
}

/* LANES channels of a tile to their sums, `step` apart. Beyond the map is zero. */
INLINE void sum_tile(const Layout *from, int64_t first, int64_t row, int64_t column, int rows,
                     int columns, float *sums, int64_t step, int half, int narrow) {
    const int whole = rows == ALL_TAPS && columns == ALL_TAPS;
    vec half_way[SUMS]; /* columns by their six sums along rows */
#pragma GCC unroll 6
    for (int k = 0; k < TAPS; k++) {
        vec seen[TAPS];
#pragma GCC unroll 6
        for (int i = 0; i < TAPS; i++) {
            int there = whole || (rows >> i & columns >> k & 1);
            seen[i] = there ? load(from, first + i * row + k * column, half) : (vec){0};
        }
        vec six[TAPS];
        sum_six(seen, six);
#pragma GCC unroll 6
        for (int i = 0; i < TAPS; i++) half_way[i * TAPS + k] = six[i];
    }
#pragma GCC unroll 6
    for (int i = 0; i < TAPS; i++) {
        vec six[TAPS];
        sum_six(half_way + i * TAPS, six);
#pragma GCC unroll 6
        for (int k = 0; k < TAPS; k++) store(sums, (i * TAPS + k) * step, six[k], narrow);
    }
}

/* The same, with code of its own for each kind of the many tiles that are inside the map. */
static void sum_any_tile(const Layout *from, int64_t first, int64_t row, int64_t column, int rows,
                         int columns, float *sums, int64_t step, int half, int narrow) {
    enum { A = ALL_TAPS };
    if (rows != A || columns != A)
        sum_tile(from, first, row, column, rows, columns, sums, step, half, narrow);
    else if (half && narrow) sum_tile(from, first, row, column, A, A, sums, step, 1, 1);
    else if (half) sum_tile(from, first, row, column, A, A, sums, step, 1, 0);
    else if (narrow) sum_tile(from, first, row, column, A, A, sums, step, 0, 1);
    else sum_tile(from, first, row, column, A, A, sums, step, 0, 0);
}

/* A disparity of the input's tiles to sums (S, T, C). */
static void take_sums(const Job *job, int64_t image, int64_t plane, const Place *places,
                      int64_t tiles, float *sums, int narrow) {
    const int64_t C = job->inputs, dilation = job->dilation;
    const Layout *from = &job->input;
    if (plane < 0 || plane >= job->input_depth) {
        memset(sums, 0, sizeof(float) * SUMS * TILES * C);
        return;
    }
    const int64_t row = dilation * from->row, column = dilation * from->column;
    for (int64_t tile = 0; tile < tiles; tile++) {
        const Place at = places[tile];
        int rows = on_map(at.y, dilation, job->height), columns = on_map(at.x, dilation, job->width);
        int64_t first = image * from->image + plane * from->plane + (at.y - dilation) * from->row +
                        (at.x - dilation) * from->column;
        for (int64_t c = 0; c < C; c += LANES) {
            float *to = narrow ? (float *)((uint16_t *)sums + tile * C + c) : sums + tile * C + c;
            sum_any_tile(from, first + c, row, column, rows, columns, to, TILES * C, job->half, narrow);
        }
    }
}

/* LANES channels of a tile's products, `step` apart, to the outputs that are on the map. */
INLINE void put_tile(const Job *job, int64_t first, int rows, int columns, vec bias,
                     const float *products, int64_t step, int half) {
    const Layout *to = &job->output;
    const int64_t row = job->dilation * to->row, column = job->dilation * to->column;
    vec half_way[SUMS];
#pragma GCC unroll 6
    for (int k = 0; k < TAPS; k++) {
        vec seen[TAPS], four[TILE];
#pragma GCC unroll 6
        for (int i = 0; i < TAPS; i++) seen[i] = *(const vec *)(products + (i * TAPS + k) * step);
        combine_six(seen, four);
#pragma GCC unroll 4
        for (int i = 0; i < TILE; i++) half_way[i * TAPS + k] = four[i];
    }
#pragma GCC unroll 4
    for (int i = 0; i < TILE; i++) {
        vec four[TILE];
        combine_six(half_way + i * TAPS, four);
#pragma GCC unroll 4
        for (int k = 0; k < TILE; k++) {
            if (i >= rows || k >= columns) continue;
            int64_t at = first + i * row + k * column;
            vec value = four[k] + bias;
            if (job->add) value += load(to, at, half);
            if (job->positive) value = (vec)((words)value & ~(words)(value < 0));
            put(job, at, value, half);
        }
    }
}

/* The same, with code of its own for each kind of the many tiles that are inside the map. */
static void put_any_tile(const Job *job, int64_t first, int rows, int columns, vec bias,
                         const float *products, int64_t step) {
    if (rows != TILE || columns != TILE)
        put_tile(job, first, rows, columns, bias, products, step, job->half);
    else if (job->half) put_tile(job, first, TILE, TILE, bias, products, step, 1);
    else put_tile(job, first, TILE, TILE, bias, products, step, 0);
}

/* How many places along an axis, from `first` on, are on the map, up to a tile. */
INLINE int left_on_map(int64_t first, int64_t dilation, int64_t length) {
    int64_t places = (length - first + dilation - 1) / dilation;
    return places < TILE ? (int)places : TILE;
}

/* Products, those of a sum `step` after those of the one before, to a disparity of the output. */
static void put_outputs(const Job *job, int64_t image, int64_t plane, const Place *places,
                        int64_t tiles, const float *products, int64_t step) {
    const int64_t N = job->outputs;
    const Layout *to = &job->output;
    for (int64_t tile = 0; tile < tiles; tile++) {
        const Place at = places[tile];
        int rows = left_on_map(at.y, job->dilation, job->height);
        int columns = left_on_map(at.x, job->dilation, job->width);
        int64_t first = image * to->image + plane * to->plane + at.y * to->row + at.x * to->column;
        for (int64_t n = 0; n < N; n += LANES) {
            vec bias = *(const vec *)(job->bias + n);
            const float *from = products + tile * N + n;
            put_any_tile(job, first + n, rows, columns, bias, from, step);
        }
    }
}

/* ---- products ---- */

/* A number, or a pair of them, times as many of each of some N. */
INLINE vec add_product(vec total, const float *sum, vec weights, int narrow) {
#if defined(__AVX512BF16__)
    if (narrow) {
        __m512bh pairs = (__m512bh)_mm512_set1_epi32(*(const pair *)sum);
        return (vec)_mm512_dpbf16_ps((__m512)total, pairs, (__m512bh)weights);
    }
#endif
    (void)narrow;
    return total + *sum * weights;
}

/* (BLOCK, K) by (K, width registers of N) to (BLOCK, the same of N). K is C, or C / 2 pairs. */
INLINE void multiply_block(const float *sums, const float *kernel, float *products, int64_t K,
                           int64_t N, const int width, int narrow) {
    vec total[BLOCK][2];
#pragma GCC unroll 12
    for (int i = 0; i < BLOCK; i++)
#pragma GCC unroll 2
        for (int v = 0; v < width; v++) total[i][v] = (vec){0};
    for (int64_t k = 0; k < K; k++) {
        vec weights[2];
#pragma GCC unroll 2
        for (int v = 0; v < width; v++) weights[v] = *(const vec *)(kernel + k * N + v * LANES);
#pragma GCC unroll 12
        for (int i = 0; i < BLOCK; i++)
#pragma GCC unroll 2
            for (int v = 0; v < width; v++)
                total[i][v] = add_product(total[i][v], sums + i * K + k, weights[v], narrow);
    }
#pragma GCC unroll 12
    for (int i = 0; i < BLOCK; i++)
#pragma GCC unroll 2
        for (int v = 0; v < width; v++) *(vec *)(products + i * N + v * LANES) = total[i][v];
}

/* (T, K) by (K, N) to (T, N); of T, no more than the blocks that hold tiles. */
static void multiply(const float *sums, const float *kernel, float *products, int64_t tiles,
                     int64_t K, int64_t N, int narrow) {
    for (int64_t tile = 0; tile < tiles; tile += BLOCK) {
        const float *from = sums + tile * K;
        float *to = products + tile * N;
        for (int64_t n = 0; n < N; n += 2 * LANES) {
            int wide = n + 2 * LANES <= N;
            if (wide && narrow) multiply_block(from, kernel + n, to + n, K, N, 2, 1);
            else if (wide) multiply_block(from, kernel + n, to + n, K, N, 2, 0);
            else multiply_block(from, kernel + n, to + n, K, N, 1, narrow);
        }
    }
}

/* ---- strips: up to T tiles through all disparities ---- */

static void map_strip(const Job *job, int64_t image, const Place *places, int64_t tiles,
                      float *room) {
    const int64_t K = job->narrow ? job->inputs / 2 : job->inputs, N = job->outputs;
    float *sums = room, *products = sums + SUMS * TILES * K;
    take_sums(job, image, 0, places, tiles, sums, job->narrow);
    for (int s = 0; s < SUMS; s++)
        multiply(sums + s * TILES * K, job->kernels + s * K * N, products + s * TILES * N, tiles, K,
                 N, job->narrow);
    put_outputs(job, image, 0, places, tiles, products, TILES * N);
}

/* Sums (T, C) of four disparities to their four sums (4, T, C). */
static void sum_depths(float *const *planes, int64_t at, int64_t count, int64_t step, float *sums,
                       int narrow) {
    for (int64_t i = 0; i < count; i += LANES) {
        vec d[DEPTHS];
        for (int z = 0; z < DEPTHS; z++) d[z] = *(const vec *)(planes[z] + at + i);
        store(sums, i, d[0] - d[2], narrow);
        store(sums, step + i, d[1] + d[2], narrow);
        store(sums, 2 * step + i, d[2] - d[1], narrow);
        store(sums, 3 * step + i, d[1] - d[3], narrow);
    }
}

/* Their products (4, T, N) to those of two disparities (2, T, N). */
static void combine_depths(const float *products, int64_t count, int64_t step, float *two) {
    for (int64_t i = 0; i < count; i += LANES) {
        vec plus = *(const vec *)(products + step + i), minus = *(const vec *)(products + 2 * step + i);
        *(vec *)(two + i) = *(const vec *)(products + i) + plus + minus;
        *(vec *)(two + step + i) = plus - minus - *(const vec *)(products + 3 * step + i);
    }
}

static void volume_strip(const Job *job, int64_t image, const Place *places, int64_t tiles,
                         float *room) {
    const int64_t C = job->inputs, N = job->outputs, in = TILES * C, out = TILES * N;
    const int64_t K = job->narrow ? C / 2 : C;
    float *planes[DEPTHS]; /* (S, T, C) each: the four disparities that two outputs see */
    for (int z = 0; z < DEPTHS; z++) planes[z] = room + z * SUMS * in;
    float *sums = room + DEPTHS * SUMS * in, *four = sums + DEPTHS * in, *all = four + DEPTHS * out;
    for (int64_t plane = 0; plane < job->depth; plane += 2) {
        for (int z = plane ? 2 : 0; z < DEPTHS; z++)
            take_sums(job, image, plane + job->first + z, places, tiles, planes[z], 0);
        for (int s = 0; s < SUMS; s++) {
            const float *kernels = job->kernels + s * DEPTHS * K * N;
            sum_depths(planes, s * in, tiles * C, in, sums, job->narrow);
            for (int q = 0; q < DEPTHS; q++)
                multiply(sums + q * TILES * K, kernels + q * K * N, four + q * out, tiles, K, N,
                         job->narrow);
            combine_depths(four, tiles * N, out, all + s * 2 * out);
        }
        for (int z = 0; z < 2 && plane + z < job->depth; z++)
            put_outputs(job, image, plane + z, places, tiles, all + z * out, 2 * out);
        for (int z = 0; z < 2; z++) { /* two of the four are seen again */
            float *done = planes[z];
            planes[z] = planes[z + 2];
            planes[z + 2] = done;
        }
    }
}

/* Floats that a thread works in. */
int64_t winograd_room(const Job *job) {
    const int64_t in = TILES * job->inputs, out = TILES * job->outputs;
    if (!job->volume) return SUMS * (in + out);
    return DEPTHS * (SUMS + 1) * in + (DEPTHS + 2 * SUMS) * out;
}

/* Rooms: one for each thread. They are those that torch has, so that none waits for others' cores. */
void winograd_convolve(const Job *job, float *rooms) {
    const int64_t across = count_tiles(job->width, job->dilation);
    const int64_t places = across * count_tiles(job->height, job->dilation);
    const int64_t strips = (places + TILES - 1) / TILES;
#pragma omp parallel for schedule(dynamic) num_threads((int)job->threads)
    for (int64_t strip = 0; strip < job->images * strips; strip++) {
        float *room = rooms + omp_get_thread_num() * winograd_room(job);
        int64_t image = strip / strips, tile = strip % strips * TILES, tiles = 0;
        Place at[TILES];
        for (; tiles < TILES && tile < places; tiles++, tile++) {
            at[tiles].y = origin(tile / across, job->height, job->dilation);
            at[tiles].x = origin(tile % across, job->width, job->dilation);
        }
        if (job->volume) volume_strip(job, image, at, tiles, room);
        else map_strip(job, image, at, tiles, room);
#if defined(__AVX512F__)
        _mm_sfence();
#endif
    }
}
