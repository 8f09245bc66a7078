// The sampler on CUDA: a cluster of blocks (one block, where many rows run) samples a row's next token and writes
// the row's next input id and position.
//
// Every choice rests on a token's level: how far its logit lies below the row's largest one, over the temperature,
// as a fixed-point number. A level gives a weight, exp(-level) as a whole number; levels and sums of weights are
// exact from there, and the token is the one at which the sum of weights, in the order of ids, passes a random
// number. So no result depends on the order of the threads, on their number, or on the number of blocks.
// Filters, their order and their borders are those of hgt_infer/sampling/host.py. The macros are given to the
// compiler by hgt_infer/cuda/sampler.py. Layout of a record, modes and reports: hgt_infer/cuda/slot_record.py.
//
// A launch has a grid of (blocks of a cluster, rows). A row lies in memory from any element on, while vectors are
// read at multiples of 8 elements: so a token's *place* is its id plus what the row's start is behind such a
// multiple. Places come in chunks, and each block has consecutive chunks of its own.

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define LEVELS_PER_NAT 134217728.0f  // 2^27: floats above 1/8 have levels of their own
#define MAX_LEVEL 3690987520.0f      // of 27.5 nats: exp(-27.5) · 2^40 is 1.2
#define WEIGHT_ONE 1099511627776.0f  // 2^40: the weight of the likeliest token
#define NO_LEVEL 0xffffffffu         // too light to be sampled, or banned
#define INFINITE __int_as_float(0x7f800000)
#define ALL_LANES 0xffffffffu
#define WARP (BLOCK < 32 ? BLOCK : 32)
#define NUM_WARPS (BLOCK / WARP)
#define LEVELS_READ 4  // levels that a thread reads at once
#define NUM_CHUNKS ((VOCAB_SIZE + NUM_READ - 1 + CHUNK - 1) / CHUNK)
#define NUM_VALUES (NUM_CHUNKS > NUM_BINS ? NUM_CHUNKS : NUM_BINS)

#if LOGIT_BYTES == 2
typedef u16 Logit;  // the bits of a float16
#else
typedef float Logit;
#endif

#ifndef ON_HOST
#define UNROLLED _Pragma("unroll")  // an array in registers needs indices that the compiler knows

static __device__ void* block_memory() {
    extern __shared__ uint4 memory[];
    return memory;
}

// The same address in the memory of another block of the cluster.
template <typename T>
static __device__ T* peer(T* own, int rank) {
#if __CUDA_ARCH__ >= 900
    if (gridDim.x > 1) {
        u64 address;
        asm("mapa.u64 %0, %1, %2;" : "=l"(address) : "l"(own), "r"(rank));
        return (T*)address;
    }
#endif
    return own;
}

// Wait for every thread of the cluster; what each has written before is seen behind it.
static __device__ void cluster_sync() {
#if __CUDA_ARCH__ >= 900
    if (gridDim.x > 1) {
        asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
        return;
    }
#endif
    __syncthreads();
}

static __device__ float half_to_float(u16 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
#endif

struct Record {
    u64 seed, sample_index;  // the key of the random numbers
    float temperature;       // 0: greedy
    int top_k;               // 0: off
    float top_p, min_p;
    int min_length;  // end-of-text is suppressed while position + 1 is below
    int prompt_length;
    int last_position;
    int mode;
    int is_adjusted;
    float repetition_penalty, frequency_penalty, first_penalty;
    int eos_token_ids[NUM_EOS_TOKENS];  // -1 behind them
    int fed_tokens[NUM_FED_TOKENS];     // by position; -1 where nothing is fed
    int unused;
};

// A histogram whose bins are added to by any number of threads at once. Two halves: the GPU adds 32 bits in
// shared memory by itself, 64 bits by trying until nobody else was faster.
struct Bins {
    u32 low[NUM_BINS], high[NUM_BINS];
};

// Where a running sum of values reaches a goal: values before `index` add up to `before`, and it adds `at`.
struct Found {
    u32 index;
    u64 before, at, goal;
};

// What a block has in its own memory; behind it the levels of its places.
struct alignas(16) Shared {
    Bins bins[2];             // one is cleared while the other one is read
    u64 values[NUM_VALUES];   // of the whole cluster: bins or chunks; or weights of a chunk
    u64 chunks[NUM_CHUNKS];   // sums of the block's own chunks
    u64 peaks[32];            // of each warp
    u64 peak;                 // of the block
    Found found;
};
static_assert(sizeof(Shared) == SHARED_BYTES, "hgt_infer/cuda/sampler.py has another size");

// The row at hand. Pointers are to place 0, which may lie before the row.
struct Row {
    const Logit* logits;
    const float* logit_bias;          // or null
    const float* repetition_penalty;  // or null
    const int* suppressed_ids;        // or null
    int shift;                        // place of id 0
    int first_chunk, last_chunk;      // of this block; the last one excluded
    float peak, levels_per_logit;
    float lowest;  // what top_k leaves of the logits
    u32* kept;     // levels of this block's places, where KEEPS_LEVELS
    Shared* shared;
    int clear_bins;  // which of the bins are all zero
};

static __device__ int chunks_per_block() { return (NUM_CHUNKS + gridDim.x - 1) / gridDim.x; }
static __device__ int lane_of_thread() { return threadIdx.x % WARP; }
static __device__ int warp_of_thread() { return threadIdx.x / WARP; }

// Reading logits

[[maybe_unused]] static __device__ float to_float(u16 bits) { return half_to_float(bits); }
static __device__ float to_float(float value) { return value; }

template <typename T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Vector {
    T values[N];
};

// Values of the N places from `place` on, a multiple of N; what is not in the vocabulary gets `other`.
template <int N, typename T>
static __device__ void read(const T* row, int place, int shift, float other, float* values) {
    int id = place - shift;
    if (id >= 0 && id + N <= VOCAB_SIZE) {
        Vector<T, N> vector = *(const Vector<T, N>*)(row + place);
        UNROLLED for (int i = 0; i < N; i++) values[i] = to_float(vector.values[i]);
    } else {
        UNROLLED for (int i = 0; i < N; i++)
            values[i] = id + i >= 0 && id + i < VOCAB_SIZE ? to_float(row[place + i]) : other;
    }
}

template <int N>
static __device__ void read_logits(const Row& row, int place, float* logits) {
    read<N>(row.logits, place, row.shift, -INFINITE, logits);
    if (row.logit_bias) {
        float bias[N], penalty[N];
        read<N>(row.logit_bias, place, row.shift, 0, bias);
        read<N>(row.repetition_penalty, place, row.shift, 1, penalty);
        UNROLLED for (int i = 0; i < N; i++) {
            logits[i] += bias[i];
            logits[i] = logits[i] < 0 ? logits[i] * penalty[i] : logits[i] / penalty[i];
        }
    }
    if (row.suppressed_ids)
        for (int k = 0; k < NUM_EOS_TOKENS; k++) {
            int suppressed = row.suppressed_ids[k] + row.shift - place;
            UNROLLED for (int i = 0; i < N; i++)
                if (i == suppressed && row.suppressed_ids[k] >= 0) logits[i] = -INFINITE;
        }
}

// Levels and weights

static __device__ u32 level_of(const Row& row, float logit) {
    float level = (row.peak - logit) * row.levels_per_logit;
    return level <= MAX_LEVEL && logit >= row.lowest ? (u32)level : NO_LEVEL;
}

// Levels of the LEVELS_READ places from `place` on, which is one of this block's.
static __device__ void read_levels(const Row& row, int place, u32* levels) {
#if KEEPS_LEVELS
    uint4 vector = *(const uint4*)(row.kept + (place - CHUNK * row.first_chunk));
    levels[0] = vector.x;
    levels[1] = vector.y;
    levels[2] = vector.z;
    levels[3] = vector.w;
#else
    float logits[LEVELS_READ];
    read_logits<LEVELS_READ>(row, place, logits);
    UNROLLED for (int i = 0; i < LEVELS_READ; i++) levels[i] = level_of(row, logits[i]);
#endif
}

// The logit of one place, as adjusted; for the few that a level has in common.
static __device__ float logit_at(const Row& row, int place) {
    float logit;
    read_logits<1>(row, place, &logit);
    return logit;
}

static __device__ u64 weight_of(u32 level) {
    return (u64)(expf((float)level * (-1.0f / LEVELS_PER_NAT)) * WEIGHT_ONE);
}

// What the filters leave: levels below `limit`, and at it the ids up to last_tie; of these no weight under `lightest`.
struct Filter {
    u32 limit;
    int last_tie;
    u64 lightest;
};

static __device__ u64 kept_weight(const Filter& filter, u32 level, int id) {
    if (level > filter.limit || (level == filter.limit && id > filter.last_tie)) return 0;
    u64 weight = weight_of(level);
    return weight < filter.lightest ? 0 : weight;
}

// Word `index` of the stream that NumPy's Philox gives for key {seed, sample_index}: Philox4x64-10 (Salmon et al.,
// "Parallel random numbers: as easy as 1, 2, 3", 2011), whose counter starts at 1 and gives four words each.
static __device__ u64 philox(u64 key0, u64 key1, u64 index) {
    u64 c0 = index / 4 + 1, c1 = 0, c2 = 0, c3 = 0;
    for (int round = 0; round < 10; round++) {
        u64 hi0 = __umul64hi(0xD2E7470EE14C6C93ull, c0), lo0 = 0xD2E7470EE14C6C93ull * c0;
        u64 hi1 = __umul64hi(0xCA5A826395121157ull, c2), lo1 = 0xCA5A826395121157ull * c2;
        c0 = hi1 ^ c1 ^ key0;
        c1 = lo1;
        c2 = hi0 ^ c3 ^ key1;
        c3 = lo0;
        key0 += 0x9E3779B97F4A7C15ull;
        key1 += 0xBB67AE8584CAA73Bull;
    }
    return index % 4 == 0 ? c0 : index % 4 == 1 ? c1 : index % 4 == 2 ? c2 : c3;
}

// A logit as a whole number that is larger for a larger one, and back.
static __device__ u32 ordered(float logit) {
    u32 bits = __float_as_uint(logit + 0.0f);  // -0 becomes 0, which it equals
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

static __device__ float ordered_logit(u32 ordered) {
    return __uint_as_float(ordered >> 31 ? ordered ^ 0x80000000u : ~ordered);
}

// A logit and an id as one number: larger for a larger logit, and for the lower of two ids with equal logits.
static __device__ u64 candidate(float logit, int id) { return (u64)ordered(logit) << 32 | (u32)~id; }

static __device__ float logit_of(u64 candidate) { return ordered_logit((u32)(candidate >> 32)); }

static __device__ int id_of(u64 candidate) { return (int)~(u32)candidate; }

// Of the whole cluster: every thread calls what follows, and gets the same result; of warp_max, of the warp.

static __device__ u64 warp_max(u64 value) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        u64 other = __shfl_xor_sync(ALL_LANES, value, distance);
        if (other > value) value = other;
    }
    return value;
}

// The largest logit, infinite if one is not a number, and the first id that has it. Keeps the block's logits.
static __device__ u64 find_peak(const Row& row) {
    Shared& shared = *row.shared;
    u64 peak = 0;
    int first = CHUNK * row.first_chunk, last = CHUNK * row.last_chunk;
    for (int place = first + NUM_READ * threadIdx.x; place < last; place += NUM_READ * BLOCK) {
        float logits[NUM_READ];
        read_logits<NUM_READ>(row, place, logits);
#if KEEPS_LEVELS
        UNROLLED for (int i = 0; i < NUM_READ; i += 4)
            *(uint4*)(row.kept + (place - first + i)) =
                {__float_as_uint(logits[i]), __float_as_uint(logits[i + 1]),
                 __float_as_uint(logits[i + 2]), __float_as_uint(logits[i + 3])};
#endif
        UNROLLED for (int i = 0; i < NUM_READ; i++) {
            float logit = logits[i] < INFINITE ? logits[i] : INFINITE;  // not a number: as bad as infinite
            u64 here = candidate(logit, place + i - row.shift);
            if (here > peak) peak = here;
        }
    }
    peak = warp_max(peak);
    if (lane_of_thread() == 0) shared.peaks[warp_of_thread()] = peak;
    __syncthreads();
    if (warp_of_thread() == 0) {
        peak = 0;
        for (int warp = lane_of_thread(); warp < NUM_WARPS; warp += WARP)
            if (shared.peaks[warp] > peak) peak = shared.peaks[warp];
        peak = warp_max(peak);
        if (lane_of_thread() == 0) shared.peak = peak;
    }
    cluster_sync();
    for (int rank = 0; rank < gridDim.x; rank++) {
        u64 other = *peer(&shared.peak, rank);
        if (rank == 0 || other > peak) peak = other;
    }
    return peak;
}

// Put levels in place of the logits that find_peak has kept.
static __device__ void keep_levels(const Row& row) {
#if KEEPS_LEVELS
    int num_places = CHUNK * (row.last_chunk - row.first_chunk);
    for (int i = 4 * threadIdx.x; i < num_places; i += 4 * BLOCK) {
        uint4* vector = (uint4*)(row.kept + i);
        uint4 logits = *vector;
        *vector = {level_of(row, __uint_as_float(logits.x)), level_of(row, __uint_as_float(logits.y)),
                   level_of(row, __uint_as_float(logits.z)), level_of(row, __uint_as_float(logits.w))};
    }
    __syncthreads();
#endif
}

// Drop those of a level whose logits are below the lowest that top_k leaves; level_of does it where none is kept.
static __device__ void drop_below_lowest(const Row& row, u32 level) {
#if KEEPS_LEVELS
    int first = CHUNK * row.first_chunk, num_places = CHUNK * (row.last_chunk - row.first_chunk);
    for (int i = threadIdx.x; i < num_places; i += BLOCK)
        if (row.kept[i] == level && logit_at(row, first + i) < row.lowest) row.kept[i] = NO_LEVEL;
    __syncthreads();
#endif
}

// Where the running sum of shared.values[0 … count - 1] reaches the goal that goal_of makes of their total; at the
// last value if it never does. The values are written, and a barrier is passed, before.
template <typename Goal>
static __device__ Found search(Shared& shared, int count, Goal goal_of) {
    if (warp_of_thread() == 0) {
        int lane = lane_of_thread(), num_own = (count + WARP - 1) / WARP;
        int first = lane * num_own, last = first + num_own < count ? first + num_own : count;
        u64 own = 0;
        for (int i = first; i < last; i++) own += shared.values[i];
        u64 reached = own;
        for (int distance = 1; distance < WARP; distance *= 2) {
            u64 other = __shfl_up_sync(ALL_LANES, reached, distance);
            if (lane >= distance) reached += other;
        }
        u64 total = __shfl_sync(ALL_LANES, reached, WARP - 1);
        u64 goal = goal_of(total), before = reached - own;
        if (goal > total) {
            u64 at = shared.values[count - 1];
            if (lane == 0) shared.found = {(u32)count - 1, total - at, at, goal};
        } else if (before < goal && goal <= reached) {
            int i = first;
            while (before + shared.values[i] < goal) before += shared.values[i++];
            shared.found = {(u32)i, before, shared.values[i], goal};
        }
    }
    __syncthreads();
    return shared.found;
}

static __device__ void add(Bins& bins, u32 bin, u64 value) {
    u32 low = (u32)value;
    u32 before = atomicAdd(&bins.low[bin], low);
    u32 high = (u32)(value >> 32) + (before + low < low);  // every wrap is seen by one
    if (high) atomicAdd(&bins.high[bin], high);
}

// What is summed up to a goal, digit by digit: tokens or their weights by level, of levels up to a limit; or
// tokens whose level is the limit, by their logits, the largest first, or by their ids.
enum What { TOKENS, WEIGHT, LOGITS, IDS };

// The lowest key K at which the tokens with keys 0 … K reach the goal, which is made of the sum over all keys. A goal
// out of reach gives the index 0xffffffff.
template <typename Goal>
static __device__ Found key_that_reaches(Row& row, What what, u32 limit, Goal goal_of) {
    Shared& shared = *row.shared;
    Found result = {0, 0, 0, 0};
    const int top = what == IDS && VOCAB_SIZE <= 1 << 16 ? 8 : 24;
    const int first = CHUNK * row.first_chunk, last = CHUNK * row.last_chunk;
    for (int shift = top; shift >= 0; shift -= 8) {  // a digit at a time, the highest first
        Bins& bins = shared.bins[row.clear_bins];
        Bins& others = shared.bins[row.clear_bins ^= 1];
        for (int place = first + LEVELS_READ * threadIdx.x; place < last; place += LEVELS_READ * BLOCK) {
            u32 levels[LEVELS_READ];
            read_levels(row, place, levels);
            UNROLLED for (int i = 0; i < LEVELS_READ; i++) {
                u32 level = levels[i], key = level;
                bool is_summed = what == TOKENS || what == WEIGHT ? level <= limit : level == limit;
                if (what == IDS) key = place + i - row.shift;
                if (what == LOGITS && is_summed) key = ~ordered(logit_at(row, place + i));
                bool has_prefix = shift == top || (key ^ result.index) >> (shift + 8) == 0;
                if (is_summed && has_prefix)
                    add(bins, key >> shift & 255, what == WEIGHT ? weight_of(level) : 1);
            }
        }
        cluster_sync();
        for (int bin = threadIdx.x; bin < NUM_BINS; bin += BLOCK) {
            u64 sum = 0;
            for (int rank = 0; rank < gridDim.x; rank++) {
                const Bins& theirs = *peer(&bins, rank);
                sum += (u64)theirs.high[bin] << 32 | theirs.low[bin];
            }
            shared.values[bin] = sum;
            others.low[bin] = others.high[bin] = 0;  // read by all before the barrier above
        }
        __syncthreads();
        Found digit = search(shared, NUM_BINS, [&](u64 total) {
            return shift == top ? goal_of(total) : result.goal - result.before;
        });
        if (shift == top) result.goal = digit.goal;
        result.index |= digit.index << shift;
        result.before += digit.before;
        result.at = digit.at;
    }
    return result;
}

// The token at which the sum of weights passes the random share of their total, in the block that has it; in the
// others -1.
static __device__ int sample_token(Row& row, const Record& record, u64 random) {
    Shared& shared = *row.shared;
    Filter filter = {NO_LEVEL - 1, VOCAB_SIZE - 1, (u64)(record.min_p * WEIGHT_ONE)};
    keep_levels(row);
    if (record.top_k > 0 && record.top_k < VOCAB_SIZE) {
        u64 top_k = record.top_k;
        Found last = key_that_reaches(row, TOKENS, filter.limit, [=](u64) { return top_k; });
        filter.limit = last.index < filter.limit ? last.index : filter.limit;
        u64 num_left = top_k - last.before;
        if (last.before < top_k && num_left < last.at) {  // not all of the last level: those with the largest logits
            Found lowest = key_that_reaches(row, LOGITS, filter.limit, [=](u64) { return num_left; });
            row.lowest = ordered_logit(~lowest.index);
            drop_below_lowest(row, filter.limit);
        }
    }
    if (record.top_p < 1) {
        double top_p = record.top_p;
        Found last = key_that_reaches(row, WEIGHT, filter.limit, [=](u64 total) {
            u64 goal = (u64)ceil((double)total * top_p);
            return goal < 1 ? 1 : goal;
        });
        filter.limit = last.index;
        u64 weight = weight_of(filter.limit);
        if (last.goal - last.before <= last.at - weight) {  // not all of the last level: those with the lowest ids
            u64 num_ties = (last.goal - last.before + weight - 1) / weight;
            filter.last_tie = key_that_reaches(row, IDS, filter.limit, [=](u64) { return num_ties; }).index;
        }
    }

    for (int chunk = row.first_chunk + warp_of_thread(); chunk < row.last_chunk; chunk += NUM_WARPS) {
        u64 sum = 0;
        for (int i = LEVELS_READ * lane_of_thread(); i < CHUNK; i += LEVELS_READ * WARP) {
            u32 levels[LEVELS_READ];
            int place = CHUNK * chunk + i;
            read_levels(row, place, levels);
            UNROLLED for (int j = 0; j < LEVELS_READ; j++) sum += kept_weight(filter, levels[j], place + j - row.shift);
        }
        for (int distance = WARP / 2; distance > 0; distance /= 2)
            sum += __shfl_xor_sync(ALL_LANES, sum, distance);
        if (lane_of_thread() == 0) shared.chunks[chunk] = sum;
    }
    cluster_sync();
    for (int chunk = threadIdx.x; chunk < NUM_CHUNKS; chunk += BLOCK)
        shared.values[chunk] = *peer(&shared.chunks[chunk], chunk / chunks_per_block());
    __syncthreads();
    // A sum passes 0 … total - 1 where it reaches one more.
    Found found = search(shared, NUM_CHUNKS, [=](u64 total) { return __umul64hi(random, total) + 1; });
    int chunk = found.index;
    if (chunk < row.first_chunk || chunk >= row.last_chunk) return -1;
    for (int i = LEVELS_READ * threadIdx.x; i < CHUNK; i += LEVELS_READ * BLOCK) {
        u32 levels[LEVELS_READ];
        int place = CHUNK * chunk + i;
        read_levels(row, place, levels);
        UNROLLED for (int j = 0; j < LEVELS_READ; j++)
            shared.values[i + j] = kept_weight(filter, levels[j], place + j - row.shift);
    }
    __syncthreads();
    u64 goal = found.goal - found.before;
    return CHUNK * chunk + search(shared, CHUNK, [=](u64) { return goal; }).index - row.shift;
}

// logits [rows, VOCAB_SIZE]; input_ids, positions [rows]: the state of each row, read and advanced;
// records [rows]; logit_bias, repetition_penalty, token_counts [rows, VOCAB_SIZE] of adjusted rows;
// token_ids [rows]: what is reported. All arrays [rows, VOCAB_SIZE] start at multiples of 16 bytes.
extern "C" __global__ void __launch_bounds__(BLOCK) sample(
    const Logit* logits, int* input_ids, int* positions, const Record* records, float* logit_bias,
    float* repetition_penalty, u32* token_counts, int* token_ids) {
    Shared& shared = *(Shared*)block_memory();
    const int row_index = blockIdx.y;
    const size_t first = (size_t)row_index * VOCAB_SIZE;
    const Record& record = records[row_index];
    const int position = positions[row_index];
    for (int bin = threadIdx.x; bin < NUM_BINS; bin += BLOCK)
        for (Bins& bins : shared.bins) bins.low[bin] = bins.high[bin] = 0;
    cluster_sync();  // before one thread writes what all have read

    int next_id = record.fed_tokens[position + 1 < NUM_FED_TOKENS ? position + 1 : NUM_FED_TOKENS - 1];
    int report = PROMPT_TOKEN;
    bool is_writer = blockIdx.x == 0;
    if (record.mode == IDLE) {
        report = PROPOSED;
    } else if (next_id < 0) {
        const int shift = first % NUM_READ;
        const int num_own = chunks_per_block();
        const int first_chunk = num_own * blockIdx.x < NUM_CHUNKS ? num_own * blockIdx.x : NUM_CHUNKS;
        const int last_chunk = first_chunk + num_own < NUM_CHUNKS ? first_chunk + num_own : NUM_CHUNKS;
        Row row = {logits + first - shift, 0, 0, 0, shift, first_chunk, last_chunk, 0, 0,
                   -INFINITE, (u32*)(&shared + 1), &shared, 0};
        if (record.is_adjusted) {
            row.logit_bias = logit_bias + first - shift;
            row.repetition_penalty = repetition_penalty + first - shift;
        }
        if (position + 1 < record.min_length && record.eos_token_ids[0] >= 0)
            row.suppressed_ids = record.eos_token_ids;
        u64 peak = find_peak(row);
        row.peak = logit_of(peak);
        if (row.peak - row.peak != 0) {
            report = NOT_FINITE;  // nothing left, or not a number: the host says which
        } else {
            if (record.temperature == 0) {
                next_id = id_of(peak);
            } else {
                row.levels_per_logit = LEVELS_PER_NAT / record.temperature;
                int step = position - (record.prompt_length - 1);
                u64 word = (u64)(step > 0 ? step : 0) * WORDS_PER_STEP;
                next_id = sample_token(row, record, philox(record.seed, record.sample_index, word));
                is_writer = next_id >= 0;
            }
            report = record.mode == HOST_CONTROLLED ? PROPOSED - next_id : next_id;
        }
    }

    if (threadIdx.x == 0 && is_writer) {
        token_ids[row_index] = report;
        if (report >= PROMPT_TOKEN) {
            input_ids[row_index] = next_id;
            positions[row_index] = position < record.last_position ? position + 1 : position;
        }
        if (report >= 0 && record.is_adjusted) {
            size_t at = first + next_id;
            logit_bias[at] -= token_counts[at] == 0 ? record.first_penalty : record.frequency_penalty;
            repetition_penalty[at] = record.repetition_penalty;
            token_counts[at]++;
        }
    }
    cluster_sync();  // a block's memory stays until every other one has read it
}
