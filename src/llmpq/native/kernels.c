/* What happens between the matrix products of a decoder layer, on fp32 rows: one pass over memory each, no temporaries.
 *
 * Every row (and head) is computed by itself, in an order of its own, so its result is the same bit for bit in any batch and with any
 * number of threads. Compiled without -ffast-math: NaN and infinity come out as they went in.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __F16C__
#include <immintrin.h>
#endif

#ifdef _OPENMP
extern int omp_get_thread_num(void);
#else
static int omp_get_thread_num(void) { return 0; }
#endif

#define LANES 16
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

/* Rows of an elementwise kernel that are worth a second thread, by their elements. */
#define PARALLEL_ELEMENTS 65536

static inline vec load(const float *p) { vec v; memcpy(&v, p, sizeof v); return v; }
static inline void store(float *p, vec v) { memcpy(p, &v, sizeof v); }
static inline vec splat(float x) { return (vec){} + x; }

/* fp16 as the cache keeps keys and values. */
typedef _Float16 half;

static inline vec load_half(const half *p) {
#if defined(__AVX512F__)
    return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__F16C__)
    __m256 parts[2] = {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p + 1))};
    return load((const float *)parts);
#else
    vec v;
    for (int i = 0; i < LANES; i++) v[i] = p[i];
    return v;
#endif
}

static inline float sum(vec v) {
    float parts[LANES];
    store(parts, v);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) parts[i] += parts[i + width];
    return parts[0];
}

/* Lane by lane the sums of neighbours, WIDTH lanes of a and WIDTH of b in turn: four rounds of it make one vector of 16 vectors' sums. */
#define FOLD(a, b, width) (__builtin_shufflevector(a, b, FIRST_##width) + __builtin_shufflevector(a, b, SECOND_##width))
#define FIRST_1 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30
#define SECOND_1 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31
#define FIRST_2 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29
#define SECOND_2 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31
#define FIRST_4 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27
#define SECOND_4 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31
#define FIRST_8 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23
#define SECOND_8 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31

/* Lane i of the result: the sum of parts[i]. */
static inline vec sums(vec *parts) {
    for (int i = 0; i < 8; i++) parts[i] = FOLD(parts[2 * i], parts[2 * i + 1], 1);
    for (int i = 0; i < 4; i++) parts[i] = FOLD(parts[2 * i], parts[2 * i + 1], 2);
    for (int i = 0; i < 2; i++) parts[i] = FOLD(parts[2 * i], parts[2 * i + 1], 4);
    return FOLD(parts[0], parts[1], 8);
}

/* e^x to 2 units in the last place: 2^n · e^r with |r| <= ln 2 / 2, e^r by its Taylor polynomial of degree 7. Below -87 it is 0, above 88 infinite. */
static inline vec exponential(vec x) {
    const vec tiny = splat(-87.0f);
    const ivec small = x < tiny;
    vec clipped = (vec)(((ivec)x & ~small) | ((ivec)tiny & small));
    const ivec large = clipped > 88.0f;
    clipped = (vec)(((ivec)clipped & ~large) | ((ivec)splat(88.0f) & large));
    const vec rounder = splat(12582912.0f); /* 1.5 * 2^23: adding it rounds to the nearest whole number */
    vec n = (clipped * 1.44269504088896341f + rounder) - rounder;
    vec r = clipped - n * 0.693145751953125f;
    r = r - n * 1.428606765330187e-6f;
    vec p = splat(1.0f / 5040);
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const ivec finite = n == n;
    ivec whole = __builtin_convertvector((vec)((ivec)n & finite), ivec);
    vec power = (vec)((whole + 127) << 23);
    vec result = p * power;
    return (vec)(((ivec)result & ~small & ~large) | ((ivec)splat(INFINITY) & large));
}

static inline float largest_of(const float *x, long n) {
    float best = -INFINITY;
    long i = 0;
    if (n >= LANES) {
        vec most = load(x);
        for (i = LANES; i + LANES <= n; i += LANES) {
            vec v = load(x + i);
            ivec more = v > most;
            most = (vec)(((ivec)v & more) | ((ivec)most & ~more));
        }
        float parts[LANES];
        store(parts, most);
        for (int k = 0; k < LANES; k++) best = parts[k] > best ? parts[k] : best;
    }
    for (; i < n; i++) best = x[i] > best ? x[i] : best;
    return best;
}

/* x[0 … n) becomes e^(x − its largest); returns the sum. NaN anywhere makes the sum NaN. */
static float exponentials(float *x, long n) {
    const float most = largest_of(x, n);
    vec total = {};
    long i = 0;
    for (; i + LANES <= n; i += LANES) {
        vec e = exponential(load(x + i) - most);
        store(x + i, e);
        total += e;
    }
    if (i < n) {
        float rest[LANES];
        for (int k = 0; k < LANES; k++) rest[k] = i + k < n ? x[i + k] - most : -INFINITY;
        vec e = exponential(load(rest));
        store(rest, e);
        memcpy(x + i, rest, sizeof(float) * (n - i));
        total += e;
    }
    return sum(total);
}

static void rotated(float *out, const float *x, const float *cosine, const float *sine, long d, float scale) {
    const long half = d / 2;
    if (!cosine) {
        for (long i = 0; i < d; i++) out[i] = x[i] * scale;
        return;
    }
    for (long i = 0; i < half; i++) out[i] = (x[i] * cosine[i] + x[i + half] * sine[i]) * scale;
    for (long i = half; i < d; i++) out[i] = (x[i] * cosine[i] + x[i - half] * sine[i]) * scale;
}

/* scores[t] = q · keys[t] for one query [d]. */
static void dots(float *scores, const float *q, const half *keys, long length, long d) {
    long t = 0;
    for (; t + LANES <= length && d % LANES == 0; t += LANES) {
        vec parts[LANES];
        for (int k = 0; k < LANES; k++) {
            const half *key = keys + (t + k) * d;
            parts[k] = load(q) * load_half(key);
            for (long i = LANES; i < d; i += LANES) parts[k] += load(q + i) * load_half(key + i);
        }
        store(scores + t, sums(parts));
    }
    for (; t < length; t++) {
        const half *key = keys + t * d;
        vec part = {};
        long i = 0;
        for (; i + LANES <= d; i += LANES) part += load(q + i) * load_half(key + i);
        float dot = sum(part);
        for (; i < d; i++) dot += q[i] * key[i];
        scores[t] = dot;
    }
}

/* out[g] = Σ_t scores[g, t] values[t] for GROUP rows of scores, stride apart: a value is read once for all of them. */
#define MOST_TOGETHER 4
#define MIX(GROUP)                                                                                                  \
    static void mix_##GROUP(float *out, const float *scores, long stride, const half *values, long length, long d) {  \
        long i = 0;                                                                                                 \
        for (; i + 4 * LANES <= d; i += 4 * LANES) {                                                                \
            vec part[GROUP][4] = {};                                                                                \
            for (long t = 0; t < length; t++)                                                                       \
                for (int b = 0; b < 4; b++) {                                                                       \
                    vec v = load_half(values + t * d + i + b * LANES);                                              \
                    for (int g = 0; g < GROUP; g++) part[g][b] += v * scores[g * stride + t];                       \
                }                                                                                                   \
            for (int g = 0; g < GROUP; g++)                                                                         \
                for (int b = 0; b < 4; b++) store(out + g * d + i + b * LANES, part[g][b]);                         \
        }                                                                                                           \
        for (; i + LANES <= d; i += LANES) {                                                                        \
            vec part[GROUP] = {};                                                                                   \
            for (long t = 0; t < length; t++) {                                                                     \
                vec v = load_half(values + t * d + i);                                                              \
                for (int g = 0; g < GROUP; g++) part[g] += v * scores[g * stride + t];                              \
            }                                                                                                       \
            for (int g = 0; g < GROUP; g++) store(out + g * d + i, part[g]);                                        \
        }                                                                                                           \
        for (; i < d; i++)                                                                                          \
            for (int g = 0; g < GROUP; g++) {                                                                       \
                float part = 0;                                                                                     \
                for (long t = 0; t < length; t++) part += values[t * d + i] * scores[g * stride + t];               \
                out[g * d + i] = part;                                                                              \
            }                                                                                                       \
    }
MIX(1)
MIX(2)
MIX(3)
MIX(4)
typedef void (*mix_of)(float *, const float *, long, const half *, long, long);
static const mix_of MIX_OF[] = {0, mix_1, mix_2, mix_3, mix_4};

/* One new token per row: rotate its queries and keys, write its key and value into the cache, attend to all of its own positions.
 *
 * q, k, v: a row's heads, one after the other, rows qk_stride and v_stride elements apart. cosine, sine: tables [d], rows rotary_stride
 * apart (0: all rows stand at one position); null: no rotation. keys, values: the cache [rows, kv_heads, capacity, d] of these rows, fp16.
 * slopes [kv_heads * group] of ALiBi or null. scratch: group * (longest + d) floats for each thread. out [rows, kv_heads * group * d].
 */
void llmpq_decode_attention(float *out, const float *q, const float *k, const float *v, long qk_stride, long v_stride,
                            const float *cosine, const float *sine, long rotary_stride, half *keys, half *values,
                            const int64_t *positions, const float *slopes, float *scratch, long longest, long rows, long kv_heads,
                            long group, long d, long capacity, float scale, int threads) {
    const long tasks = rows * kv_heads;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (long task = 0; task < tasks; task++) {
        const long row = task / kv_heads, head = task % kv_heads, length = positions[row] + 1;
        const float *cos_row = cosine ? cosine + row * rotary_stride : 0, *sin_row = sine ? sine + row * rotary_stride : 0;
        half *own_keys = keys + (row * kv_heads + head) * capacity * d, *own_values = values + (row * kv_heads + head) * capacity * d;
        float *scores = scratch + omp_get_thread_num() * group * (longest + d), *queries = scores + group * longest;
        /* The new key is turned in fp32, in the place of the queries that come after it, and kept in fp16. */
        rotated(queries, k + row * qk_stride + head * d, cos_row, sin_row, d, 1.0f);
        for (long i = 0; i < d; i++) own_keys[(length - 1) * d + i] = queries[i];
        for (long i = 0; i < d; i++) own_values[(length - 1) * d + i] = v[row * v_stride + head * d + i];
        for (long g = 0; g < group; g++) rotated(queries + g * d, q + row * qk_stride + (head * group + g) * d, cos_row, sin_row, d, scale);
        for (long g = 0; g < group; g += MOST_TOGETHER) {
            const long count = group - g < MOST_TOGETHER ? group - g : MOST_TOGETHER;
            float *some = scores + g * longest, *target = out + (row * kv_heads + head) * group * d + g * d;
            float shares[MOST_TOGETHER];
            for (long i = 0; i < count; i++) {
                dots(some + i * longest, queries + (g + i) * d, own_keys, length, d);
                if (slopes)
                    for (long t = 0; t < length; t++) some[i * longest + t] += slopes[head * group + g + i] * t;
                shares[i] = 1.0f / exponentials(some + i * longest, length);
            }
            MIX_OF[count](target, some, longest, own_values, length, d);
            for (long i = 0; i < count; i++)
                for (long j = 0; j < d; j++) target[i * d + j] *= shares[i];
        }
    }
}

/* out = x / sqrt(mean(x²) + eps) · weight for rows [rows, n]. */
void llmpq_rms_norm(float *out, const float *x, const float *weight, float eps, long rows, long n, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && rows * n > PARALLEL_ELEMENTS)
    for (long row = 0; row < rows; row++) {
        const float *from = x + row * n;
        float *to = out + row * n;
        vec squares = {};
        long i = 0;
        for (; i + LANES <= n; i += LANES) squares += load(from + i) * load(from + i);
        float total = sum(squares);
        for (; i < n; i++) total += from[i] * from[i];
        const float factor = 1.0f / sqrtf(total / n + eps);
        for (i = 0; i + LANES <= n; i += LANES) store(to + i, load(from + i) * factor * load(weight + i));
        for (; i < n; i++) to[i] = from[i] * factor * weight[i];
    }
}

/* out = silu(gate) · up for rows of gate and up side by side: x [rows, 2 n] → out [rows, n]. */
void llmpq_silu_mul(float *out, const float *x, long rows, long n, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && rows * n > PARALLEL_ELEMENTS)
    for (long row = 0; row < rows; row++) {
        const float *gate = x + row * 2 * n, *up = gate + n;
        float *to = out + row * n;
        for (long i = 0; i < n; i += LANES) {
            if (i + LANES <= n) {
                vec g = load(gate + i);
                store(to + i, g / (1.0f + exponential(-g)) * load(up + i));
            } else {
                float g[LANES] = {0}, u[LANES] = {0};
                memcpy(g, gate + i, sizeof(float) * (n - i));
                memcpy(u, up + i, sizeof(float) * (n - i));
                store(g, load(g) / (1.0f + exponential(-load(g))) * load(u));
                memcpy(to + i, g, sizeof(float) * (n - i));
            }
        }
    }
}

/* Divide every row by its largest magnitude (floor at least), which goes to largest [rows]; NaN where a row holds NaN or infinity.
 *
 * columns [count] (0: none) are taken out first: their values go to taken [rows, count], zeros stand in their place.
 */
void llmpq_normalise_rows(float *out, float *largest, float *taken, const float *x, const int64_t *columns, long count, float floor,
                          long rows, long n, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && rows * n > PARALLEL_ELEMENTS)
    for (long row = 0; row < rows; row++) {
        const float *from = x + row * n;
        float *to = out + row * n;
        if (count) {
            memcpy(to, from, sizeof(float) * n);
            for (long c = 0; c < count; c++) {
                taken[row * count + c] = from[columns[c]];
                to[columns[c]] = 0;
            }
            from = to;
        }
        const ivec magnitude = (ivec){} + 0x7fffffff; /* all bits but the sign */
        vec most = {}, broken = {};
        long i = 0;
        for (; i + LANES <= n; i += LANES) {
            vec v = load(from + i), size = (vec)((ivec)v & magnitude);
            ivec more = size > most;
            most = (vec)(((ivec)size & more) | ((ivec)most & ~more));
            broken += v - v; /* 0, or NaN where v is not finite */
        }
        float parts[LANES], best = floor;
        store(parts, most);
        for (int k = 0; k < LANES; k++) best = parts[k] > best ? parts[k] : best;
        float bad = sum(broken);
        for (; i < n; i++) {
            float size = fabsf(from[i]);
            best = size > best ? size : best;
            bad += from[i] - from[i];
        }
        best += bad;
        largest[row] = best;
        for (i = 0; i + LANES <= n; i += LANES) store(to + i, load(from + i) / best);
        for (; i < n; i++) to[i] = from[i] / best;
    }
}
