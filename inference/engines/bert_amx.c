/* A BERT encoder for CPUs with AMX: bfloat16 products, float32 sums, and no padding between the texts of a batch.
 *
 * With two planes every number of a product is kept as the sum of two bfloat16 numbers, which is float32 but for its last
 * bits, and a product is three: high · high, high · low and low · high. With one plane the low parts are left out.
 *
 * Tokens of all texts lie end to end and go through the whole model in chunks that stay in the caches. What follows a
 * product (bias, GELU, residual) is done while the next block's product runs, so that the tile unit and the vector
 * unit work side by side. Attention sees each text alone. inference/engines/amx.py is the only caller and mirrors the
 * three structs below.
 */
#include <sys/syscall.h>
#include <unistd.h>

#include "bert_numbers.h"

typedef struct {
    const float *qkv_bias, *out_bias, *up_bias, *down_bias;
    const float *attention_norm_weight, *attention_norm_bias, *output_norm_weight, *output_norm_bias;
    const bf16 *qkv, *out, *up, *down; /* as bert_pack writes them */
} Layer;

typedef struct {
    int32_t layers, hidden, heads, inner; /* hidden / heads and inner are multiples of 32 */
    int32_t planes;                       /* 1 or 2 */
    float epsilon;
    const float *words, *positions, *types, *norm_weight, *norm_bias;
    const Layer *layer;
} Model;

typedef enum { STATES, MEAN, FIRST } Pool;

typedef struct {
    const int64_t *ids, *types, *places; /* of each token; types may be null */
    const int32_t *lengths;              /* tokens of each text */
    const int32_t *texts, *tokens;       /* where each chunk begins, and, last, where the batch ends */
    float *result;                       /* a row for each token (STATES) or for each text */
    int32_t chunks, next, pool;
} Batch;

enum { ROWS = 32, KEYS = 32 };

/* 0 once the kernel lets this process use the tile unit. */
int bert_allow_amx(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18 };
    return (int)syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA);
}

/* What was stored is in memory before tiles are loaded from it: gcc's tile intrinsics do not say that they read. */
#define STORED() __asm__ volatile("" ::: "memory")

static void configure_tiles(void) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } __attribute__((packed)) config = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) {
        config.bytes[tile] = 64;
        config.rows[tile] = 16;
    }
    /* By its address, or gcc before 12.4 takes all but the first eight bytes for unread and leaves them out. */
    __asm__ volatile("" ::"r"(&config) : "memory");
    _tile_loadconfig(&config);
}

/* weight (outputs, inputs), row-major → for every 32 outputs their planes one after the other, each in tiles of
 * 32 inputs × 16 outputs, two inputs side by side. */
void bert_pack(const float *weight, int32_t outputs, int32_t inputs, int32_t planes, bf16 *packed) {
    for (int n = 0; n < outputs; n += 32)
        for (int plane = 0; plane < planes; plane++)
            for (int k = 0; k < inputs; k += 32)
                for (int half = 0; half < 2; half++)
                    for (int pair = 0; pair < 16; pair++)
                        for (int column = 0; column < 16; column++)
                            for (int i = 0; i < 2; i++) {
                                const float value =
                                    weight[(int64_t)(n + 16 * half + column) * inputs + k + 2 * pair + i];
                                *packed++ = rounded(plane ? value - widened(rounded(value)) : value);
                            }
}

typedef enum { PLAIN, GELU, RESIDUAL } After;

/* Where a product goes: float32 `values` that it is added to, or `numbers`. */
typedef struct {
    float *values;
    Numbers numbers;
} Target;

INLINE void finish_row(const float *sums, int row, const float *bias, Target to, int64_t width, After after) {
    const __m512 low = _mm512_add_ps(_mm512_load_ps(sums + row * 32), _mm512_loadu_ps(bias));
    const __m512 high = _mm512_add_ps(_mm512_load_ps(sums + row * 32 + 16), _mm512_loadu_ps(bias + 16));
    if (after == RESIDUAL) {
        float *values = to.values + row * width;
        _mm512_storeu_ps(values, _mm512_add_ps(low, _mm512_loadu_ps(values)));
        _mm512_storeu_ps(values + 16, _mm512_add_ps(high, _mm512_loadu_ps(values + 16)));
    } else if (after == GELU) {
        const int exact = to.numbers.low != 0;
        store(from_number(to.numbers, row * width), exact ? exact_gelu(low) : gelu(low),
              exact ? exact_gelu(high) : gelu(high));
    } else {
        store(from_number(to.numbers, row * width), low, high);
    }
}

INLINE void add_tiles(void) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
}

/* to[rows, outputs] = after(from[rows, inputs] · weightᵀ + bias), 32 rows × 32 outputs at a time: `from` and `to` have
 * room for whole blocks. RESIDUAL adds to float32; the others write bfloat16. */
INLINE void product(Numbers from, int rows, int inputs, const bf16 *weight, const float *bias, int outputs, Target to,
                    After after) {
    float sums[2][ROWS * 32] __attribute__((aligned(64)));
    const int planes = from.low ? 2 : 1, steps = inputs / 32;
    const int rounds = (rows + ROWS - 1) / ROWS * steps, lines = (planes * inputs + rounds - 1) / rounds;
    Target unfinished = {0};
    const float *unfinished_bias = NULL;
    int turn = 0;
    STORED();
    for (int n = 0; n < outputs; n += 32) {
        const Numbers block = {(bf16 *)weight + (int64_t)n * planes * inputs, from.low ? 32 * (int64_t)inputs : 0};
        /* The weights of the next 32 outputs, or of the next product: the processor does not foresee tile loads. */
        const char *coming = (const char *)(block.at + 32 * (int64_t)planes * inputs);
        for (int m = 0; m < rows; m += ROWS) {
            int done = 0;
            _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
            for (int step = 0; step < steps; step++) {
                const bf16 *a = from.at + (int64_t)m * inputs + step * 32, *b = block.at + step * 1024;
                const int64_t below = 16 * (int64_t)inputs;
                /* Low parts first and last: each tile is loaded once but those of `from`, which stay for two parts. */
                _tile_loadd(4, a, inputs * 2);
                _tile_loadd(6, b + block.low, 64);
                _tile_loadd(7, b + block.low + 512, 64);
                _tile_loadd(5, a + below, inputs * 2);
                add_tiles();
                if (from.low) {
                    _tile_loadd(6, b, 64);
                    _tile_loadd(7, b + 512, 64);
                    add_tiles();
                    _tile_loadd(4, a + from.low, inputs * 2);
                    _tile_loadd(5, a + from.low + below, inputs * 2);
                    add_tiles();
                }
                for (int line = 0; line < lines; line++, coming += 64) _mm_prefetch(coming, _MM_HINT_T1);
                if (unfinished_bias)
                    for (int until = ROWS * (step + 1) / steps; done < until; done++)
                        finish_row(sums[turn ^ 1], done, unfinished_bias, unfinished, outputs, after);
            }
            _tile_stored(0, sums[turn], 128);
            _tile_stored(1, sums[turn] + 16, 128);
            _tile_stored(2, sums[turn] + 16 * 32, 128);
            _tile_stored(3, sums[turn] + 16 * 32 + 16, 128);
            const int64_t corner = (int64_t)m * outputs + n;
            unfinished = (Target){to.values + (to.values ? corner : 0), from_number(to.numbers, corner)};
            unfinished_bias = bias + n;
            turn ^= 1;
        }
    }
    for (int row = 0; unfinished_bias && row < ROWS; row++)
        finish_row(sums[turn ^ 1], row, unfinished_bias, unfinished, outputs, after);
}

/* Each once with one plane and once with two, so that neither pays for the other. */
#define PRODUCT(name, after) \
    static void name(Numbers from, int rows, int inputs, const bf16 *weight, const float *bias, int outputs, \
                     Target to) { \
        if (from.low) { \
            product(from, rows, inputs, weight, bias, outputs, to, after); \
        } else { \
            from.low = to.numbers.low = 0; \
            product(from, rows, inputs, weight, bias, outputs, to, after); \
        } \
    }
PRODUCT(project, PLAIN)
PRODUCT(widen, GELU)
PRODUCT(add_product, RESIDUAL)

/* Normalises each row of `values` in place, and writes it once more in bfloat16. */
static void normalise(float *values, Numbers copy, int rows, int width, const float *weight, const float *bias,
                      float epsilon) {
    for (int row = 0; row < rows; row++, values += width, copy.at += width) {
        __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
        for (int i = 0; i < width; i += 16) sum = _mm512_add_ps(sum, _mm512_loadu_ps(values + i));
        const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / (float)width);
        for (int i = 0; i < width; i += 16) {
            const __m512 apart = _mm512_sub_ps(_mm512_loadu_ps(values + i), mean);
            squares = _mm512_fmadd_ps(apart, apart, squares);
        }
        const __m512 scale = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(squares) / (float)width + epsilon));
        for (int i = 0; i < width; i += 32) {
            __m512 part[2];
            for (int half = 0; half < 2; half++) {
                const int at = i + 16 * half;
                const __m512 scaled = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(values + at), mean), scale);
                part[half] = _mm512_fmadd_ps(scaled, _mm512_loadu_ps(weight + at), _mm512_loadu_ps(bias + at));
                _mm512_storeu_ps(values + at, part[half]);
            }
            store(from_number(copy, i), part[0], part[1]);
        }
    }
}

/* The first `count` of 16 keys, 32 numbers of each, as a tile whose row p holds every key's pair p. */
INLINE void turn_keys(const bf16 *keys, int64_t stride, int count, uint32_t *tile) {
    __m512i row[16], next[16];
    for (int i = 0; i < 16; i++) row[i] = i < count ? _mm512_loadu_si512(keys + i * stride) : _mm512_setzero_si512();
    for (int i = 0; i < 16; i += 2) {
        next[i] = _mm512_unpacklo_epi32(row[i], row[i + 1]);
        next[i + 1] = _mm512_unpackhi_epi32(row[i], row[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            row[i + 2 * j] = _mm512_unpacklo_epi64(next[i + j], next[i + j + 2]);
            row[i + 2 * j + 1] = _mm512_unpackhi_epi64(next[i + j], next[i + j + 2]);
        }
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 4; j++) {
            next[i + j] = _mm512_shuffle_i32x4(row[i + j], row[i + j + 4], 0x88);
            next[i + j + 4] = _mm512_shuffle_i32x4(row[i + j], row[i + j + 4], 0xdd);
        }
    for (int j = 0; j < 8; j++) {
        _mm512_storeu_si512(tile + 16 * j, _mm512_shuffle_i32x4(next[j], next[j + 8], 0x88));
        _mm512_storeu_si512(tile + 16 * (j + 8), _mm512_shuffle_i32x4(next[j], next[j + 8], 0xdd));
    }
}

/* Values of a text, 32 numbers of each, as two tiles for every 32 keys: two keys side by side. */
INLINE void pair_values(const bf16 *values, int64_t stride, int length, int deep, bf16 *tiles) {
    const __m512i first = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6,
                                           37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
    for (int key = 0; key < (length + KEYS - 1) / KEYS * KEYS; key += 2)
        for (int d = 0; d < deep; d++) {
            const bf16 *at = values + key * stride + 32 * d;
            const __m512i one = key < length ? _mm512_loadu_si512(at) : _mm512_setzero_si512();
            const __m512i two = key + 1 < length ? _mm512_loadu_si512(at + stride) : _mm512_setzero_si512();
            bf16 *tile = tiles + ((int64_t)key / 32 * deep + d) * 1024 + key % 32 / 2 * 32;
            _mm512_storeu_si512(tile, _mm512_permutex2var_epi16(one, first, two));
            _mm512_storeu_si512(tile + 512, _mm512_permutex2var_epi16(one, second, two));
        }
}

INLINE __mmask16 lanes(int left) { return left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1); }

/* shares = exp(scores - the largest), in bfloat16, zero from `length` to the next multiple of 32; returns their sum. */
INLINE float soften(const float *scores, Numbers shares, int length, __m512 scale) {
    const __m512 least = _mm512_set1_ps(-INFINITY);
    __m512 most = least, sum = _mm512_setzero_ps();
    for (int i = 0; i < length; i += 16)
        most = _mm512_max_ps(most, _mm512_mask_loadu_ps(least, lanes(length - i), scores + i));
    const __m512 top = _mm512_mul_ps(_mm512_set1_ps(_mm512_reduce_max_ps(most)), scale);
    for (int i = 0; i < length; i += 32) {
        __m512 part[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
        for (int half = 0; half < 2 && i + 16 * half < length; half++) {
            const __mmask16 real = lanes(length - i - 16 * half);
            const __m512 score = _mm512_maskz_loadu_ps(real, scores + i + 16 * half);
            part[half] = _mm512_maskz_mov_ps(real, power_of_two(_mm512_fmsub_ps(score, scale, top), shares.low != 0));
            sum = _mm512_add_ps(sum, part[half]);
        }
        store(from_number(shares, i), part[0], part[1]);
    }
    return _mm512_reduce_add_ps(sum);
}

/* A thread's memory. */
typedef struct {
    float *values, *scores;
    Numbers copy, attended, broad, keys, paired, shares;
} Room;

/* One head of one text: to[queries, size] = softmax(Q Kᵀ) V, for its first tokens. */
INLINE void attend_by(Numbers qkv, int length, int queries, int hidden, int size, Numbers to, const Room *room) {
    const int64_t stride = 3 * (int64_t)hidden;
    const int padded = (length + KEYS - 1) / KEYS * KEYS, deep = size / 32, planes = qkv.low ? 2 : 1;
    const __m512 scale = _mm512_set1_ps(1.4426950408889634f / sqrtf((float)size));
    const Numbers keys = {room->keys.at, qkv.low ? room->keys.low : 0};
    const Numbers values = {room->paired.at, qkv.low ? room->paired.low : 0};
    const Numbers shares = {room->shares.at, qkv.low ? room->shares.low : 0};
    for (int plane = 0; plane < planes; plane++) {
        const bf16 *from = qkv.at + plane * qkv.low;
        for (int key = 0; key < length; key += 16)
            for (int d = 0; d < deep; d++)
                turn_keys(from + hidden + key * stride + 32 * d, stride, length - key,
                          (uint32_t *)(keys.at + plane * keys.low + ((int64_t)key / 16 * deep + d) * 512));
        pair_values(from + 2 * hidden, stride, length, deep, values.at + plane * values.low);
    }
    STORED();
    for (int query = 0; query < queries; query += 16) {
        const int rows = queries - query < 16 ? queries - query : 16;
        float total[16];
        for (int key = 0; key < length; key += 16) {
            _tile_zero(0);
            for (int part = 0; part < parts(qkv); part++)
                for (int d = 0; d < deep; d++) {
                    _tile_loadd(4, left(qkv, part) + query * stride + 32 * d, stride * 2);
                    _tile_loadd(6, right(keys, part) + ((int64_t)key / 16 * deep + d) * 512, 64);
                    _tile_dpbf16ps(0, 4, 6);
                }
            _tile_stored(0, room->scores + key, padded * 4);
        }
        for (int row = 0; row < rows; row++)
            total[row] = soften(room->scores + (int64_t)row * padded, from_number(shares, (int64_t)row * padded), length,
                                scale);
        STORED();
        for (int d = 0; d < deep; d++) {
            float sums[16 * 32] __attribute__((aligned(64)));
            _tile_zero(1); _tile_zero(2);
            for (int part = 0; part < parts(qkv); part++)
                for (int key = 0; key < length; key += 32) {
                    const bf16 *tiles = right(values, part) + ((int64_t)key / 32 * deep + d) * 1024;
                    _tile_loadd(4, left(shares, part) + key, padded * 2);
                    _tile_loadd(6, tiles, 64);
                    _tile_loadd(7, tiles + 512, 64);
                    _tile_dpbf16ps(1, 4, 6);
                    _tile_dpbf16ps(2, 4, 7);
                }
            _tile_stored(1, sums, 128);
            _tile_stored(2, sums + 16, 128);
            for (int row = 0; row < rows; row++) {
                const __m512 share = _mm512_set1_ps(1.0f / total[row]);
                store(from_number(to, (int64_t)(query + row) * hidden + 32 * d),
                      _mm512_mul_ps(_mm512_load_ps(sums + row * 32), share),
                      _mm512_mul_ps(_mm512_load_ps(sums + row * 32 + 16), share));
            }
        }
    }
}

static void attend(Numbers qkv, int length, int queries, int hidden, int size, Numbers to, const Room *room) {
    if (qkv.low) {
        attend_by(qkv, length, queries, hidden, size, to, room);
    } else {
        qkv.low = to.low = 0;
        attend_by(qkv, length, queries, hidden, size, to, room);
    }
}

/* Moves what is known of each text's first token to the front, a row for each text. */
static void keep_first(const int32_t *lengths, int texts, int hidden, const Room *room) {
    const Numbers attended = room->attended;
    for (int text = 0, at = 0; text < texts; at += lengths[text++]) {
        const int64_t from = (int64_t)at * hidden, to = (int64_t)text * hidden;
        memmove(room->values + to, room->values + from, sizeof(float) * hidden);
        for (int plane = 0; plane < (attended.low ? 2 : 1); plane++)
            memmove(attended.at + plane * attended.low + to, attended.at + plane * attended.low + from,
                    sizeof(bf16) * hidden);
    }
}

/* `first`: the last layer of a model of which only each text's first token is asked for, a row for each at the end. */
static void run_layer(const Model *model, const Layer *layer, const int32_t *lengths, int texts, int rows, int first,
                      const Room *room) {
    const int hidden = model->hidden, size = hidden / model->heads;
    const Target values = {.values = room->values}, broad = {.numbers = room->broad};
    project(room->copy, rows, hidden, layer->qkv, layer->qkv_bias, 3 * hidden, broad);
    for (int text = 0, at = 0; text < texts; at += lengths[text++])
        for (int head = 0; head < model->heads; head++)
            attend(from_number(room->broad, (int64_t)at * 3 * hidden + head * size), lengths[text],
                   first ? 1 : lengths[text], hidden, size,
                   from_number(room->attended, (int64_t)at * hidden + head * size), room);
    if (first) {
        keep_first(lengths, texts, hidden, room);
        rows = texts;
    }
    add_product(room->attended, rows, hidden, layer->out, layer->out_bias, hidden, values);
    normalise(room->values, room->copy, rows, hidden, layer->attention_norm_weight, layer->attention_norm_bias,
              model->epsilon);
    widen(room->copy, rows, hidden, layer->up, layer->up_bias, model->inner, broad);
    add_product(room->broad, rows, model->inner, layer->down, layer->down_bias, hidden, values);
    normalise(room->values, room->copy, rows, hidden, layer->output_norm_weight, layer->output_norm_bias,
              model->epsilon);
}

static void embed(const Model *model, const Batch *batch, int token, int rows, float *values) {
    for (int end = token + rows; token < end; token++, values += model->hidden) {
        const float *word = model->words + batch->ids[token] * model->hidden;
        const float *type = model->types + (batch->types ? batch->types[token] : 0) * model->hidden;
        const float *place = model->positions + batch->places[token] * model->hidden;
        for (int i = 0; i < model->hidden; i++) values[i] = word[i] + place[i] + type[i];
    }
}

static void average(const Batch *batch, int text, int end, const float *values, int hidden) {
    for (; text < end; values += (int64_t)batch->lengths[text++] * hidden) {
        float *result = batch->result + (int64_t)text * hidden;
        const int rows = batch->lengths[text];
        memcpy(result, values, sizeof(float) * hidden);
        for (int row = 1; row < rows; row++)
            for (int i = 0; i < hidden; i++) result[i] += values[(int64_t)row * hidden + i];
        for (int i = 0; i < hidden; i++) result[i] /= (float)rows;
    }
}

INLINE void *taken(char **room, int64_t bytes) {
    char *start = *room;
    *room += (bytes + 63) / 64 * 64;
    return start;
}

INLINE Numbers taken_numbers(char **room, int64_t count, int planes) {
    count = (count + 31) / 32 * 32; /* the second plane begins at a multiple of 64 bytes, too */
    return (Numbers){taken(room, count * planes * 2), planes == 2 ? count : 0};
}

static char *divide(const Model *model, int64_t rows, int64_t longest, char *at, Room *room) {
    const int64_t blocks = (rows + ROWS - 1) / ROWS * ROWS + ROWS, keys = (longest + KEYS - 1) / KEYS * KEYS;
    const int64_t broad = 3 * model->hidden > model->inner ? 3 * model->hidden : model->inner;
    const int64_t size = model->hidden / model->heads;
    room->values = taken(&at, blocks * model->hidden * 4);
    room->copy = taken_numbers(&at, blocks * model->hidden, model->planes);
    room->attended = taken_numbers(&at, blocks * model->hidden, model->planes);
    room->broad = taken_numbers(&at, blocks * broad, model->planes);
    room->keys = taken_numbers(&at, keys * size, model->planes);
    room->paired = taken_numbers(&at, keys * size, model->planes);
    room->scores = taken(&at, keys * 16 * 4);
    room->shares = taken_numbers(&at, keys * 16, model->planes);
    return at;
}

/* Bytes of memory that a thread needs for chunks of so many tokens. */
int64_t bert_room(const Model *model, int32_t rows, int32_t longest) {
    Room room;
    return divide(model, rows, longest, NULL, &room) - (char *)NULL;
}

/* Computes chunks of the batch until none is left. Any number of threads may do so at a time, each with zeroed memory
 * of its own, that begins at a multiple of 64, for the largest chunk and the longest text. */
void bert_work(const Model *model, Batch *batch, int32_t rows, int32_t longest, char *memory) {
    Room room;
    divide(model, rows, longest, memory, &room);
    configure_tiles();
    for (int chunk; (chunk = __atomic_fetch_add(&batch->next, 1, __ATOMIC_RELAXED)) < batch->chunks;) {
        const int text = batch->texts[chunk], end = batch->texts[chunk + 1];
        const int token = batch->tokens[chunk], count = batch->tokens[chunk + 1] - token;
        embed(model, batch, token, count, room.values);
        normalise(room.values, room.copy, count, model->hidden, model->norm_weight, model->norm_bias, model->epsilon);
        for (int layer = 0; layer < model->layers; layer++) {
            const int first = batch->pool == FIRST && layer == model->layers - 1;
            run_layer(model, &model->layer[layer], batch->lengths + text, end - text, count, first, &room);
        }
        if (batch->pool == MEAN) {
            average(batch, text, end, room.values, model->hidden);
        } else {
            const int64_t row = batch->pool == FIRST ? text : token, rows = batch->pool == FIRST ? end - text : count;
            memcpy(batch->result + row * model->hidden, room.values, sizeof(float) * rows * model->hidden);
        }
    }
    _tile_release();
}
