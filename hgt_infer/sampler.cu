// The sampler on CUDA: one block per row draws the row's next token and puts its slot's state one step on.
//
// Every choice rests on a token's level: how far its logit lies below the row's largest one, over the
// temperature, as a fixed-point number. A level gives a weight, exp(-level) as a whole number; levels and sums
// of weights are exact from there, so that no result depends on the order of the threads or on their number.
// Filters, their order and their borders are those of hgt_infer/sampling.py. The macros are given to the
// compiler by hgt_infer/sampling_kernel.py. Layout and meaning of a record: hgt_infer/slot_record.py.

typedef unsigned int u32;
typedef unsigned long long u64;

#define LEVELS_PER_NAT 134217728.0f  // 2^27: floats above 1/8 have levels of their own
#define MAX_NATS 27.5f               // exp(-27.5) · 2^40 is 1.2
#define WEIGHT_ONE 1099511627776.0f  // 2^40: the weight of the likeliest token
#define NO_LEVEL 0xffffffffu         // too light to be drawn, or banned
#define LANES 1024  // token ids id, id + LANES, … belong to a lane; the order of tokens goes lane by lane
#define GROUP 32
#define LANE_SIZE ((VOCAB_SIZE + LANES - 1) / LANES)
#define INFINITE __int_as_float(0x7f800000)

struct Record {
    u64 seed, sample_index;  // the key of the random numbers
    float temperature;       // 0: greedy
    int top_k;               // 0: off
    float top_p, min_p;
    int min_length;  // end-of-text is suppressed while position + 1 is below
    int prompt_length;
    int last_position;
    int holds;
    int is_adjusted;
    float repetition_penalty, frequency_penalty, first_penalty;
    int eos_token_ids[NUM_EOS_TOKENS];  // -1 behind them
    int fed_tokens[NUM_FED_TOKENS];     // by position; -1 where nothing is fed
    int unused;
};

// The row at hand: logits [VOCAB_SIZE] and, where it is adjusted, what is added and multiplied.
struct Row {
    const float* logits;
    const float* logit_bias;          // or null
    const float* repetition_penalty;  // or null
    const int* suppressed_ids;        // or null
    float peak, temperature;
};

static __device__ float adjusted_logit(const Row& row, int id) {
    float logit = row.logits[id];
    if (row.logit_bias) {
        logit += row.logit_bias[id];
        float penalty = row.repetition_penalty[id];
        logit = logit < 0 ? logit * penalty : logit / penalty;
    }
    if (row.suppressed_ids)
        for (int i = 0; i < NUM_EOS_TOKENS; i++)
            if (row.suppressed_ids[i] == id) logit = -INFINITE;
    return logit;
}

static __device__ u32 level_of(const Row& row, int id) {
    float nats = (row.peak - adjusted_logit(row, id)) / row.temperature;
    return nats <= MAX_NATS ? (u32)(nats * LEVELS_PER_NAT) : NO_LEVEL;
}

static __device__ u64 weight_of(u32 level) {
    return (u64)(expf((float)level * (-1.0f / LEVELS_PER_NAT)) * WEIGHT_ONE);
}

// A token's weight where it stays: below `limit`, or at it with an id up to last_tie; 0 elsewhere.
static __device__ u64 kept_weight(const Row& row, int id, u32 limit, int last_tie, u64 lightest) {
    u32 level = level_of(row, id);
    if (level > limit || (level == limit && id > last_tie)) return 0;
    u64 weight = weight_of(level);
    return weight < lightest ? 0 : weight;
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

// Of the whole block: every thread calls them, and gets the same result.

static __device__ float block_max(float value) {
    __shared__ float values[BLOCK];
    int thread = threadIdx.x;
    values[thread] = value;
    __syncthreads();
    for (int half = BLOCK / 2; half > 0; half /= 2) {
        if (thread < half && values[thread + half] > values[thread]) values[thread] = values[thread + half];
        __syncthreads();
    }
    float result = values[0];
    __syncthreads();
    return result;
}

// The sum of a value of each lane: `lanes` has one per lane, whichever thread wrote it.
static __device__ u64 lanes_total(const u64* lanes, u64* groups) {
    __syncthreads();
    for (int group = threadIdx.x; group < LANES / GROUP; group += BLOCK) {
        u64 sum = 0;
        for (int i = 0; i < GROUP; i++) sum += lanes[GROUP * group + i];
        groups[group] = sum;
    }
    __syncthreads();
    u64 total = 0;
    for (int group = 0; group < LANES / GROUP; group++) total += groups[group];
    return total;
}

// A histogram whose bins are added to by any number of threads at once. Two halves: the GPU adds 32 bits in
// shared memory by itself, 64 bits by trying until nobody else was faster.
struct Bins {
    u32 low[256], high[256];
};

static __device__ void add(Bins& bins, u32 bin, u64 value) {
    u32 low = (u32)value;
    u32 before = atomicAdd(&bins.low[bin], low);
    u32 high = (u32)(value >> 32) + (before + low < low);  // every wrap is seen by one
    if (high) atomicAdd(&bins.high[bin], high);
}

static __device__ u64 value_of(const Bins& bins, u32 bin) { return (u64)bins.high[bin] << 32 | bins.low[bin]; }

// What is summed up to a goal, digit by digit.
enum What { TOKENS, WEIGHT, TIES };

// The lowest key K at which the tokens with keys 0 … K reach `goal`. The key is a token's level, and what is summed
// are tokens or their weights, of levels up to `limit`; or it is the id of a token whose level is `limit`
// (TIES). *before is what keys below K reach, *at what K itself adds. A goal out of reach gives 0xffffffff.
static __device__ u32 key_that_reaches(const Row& row, u64 goal, What what, u32 limit, u64* before, u64* at) {
    __shared__ Bins bins;
    __shared__ u64 groups[16], chosen_before;
    __shared__ u32 chosen;
    u32 prefix = 0;
    u64 sum = 0;
    const int first = what == TIES && VOCAB_SIZE <= 1 << 16 ? 8 : 24;
    for (int shift = first; shift >= 0; shift -= 8) {  // a digit at a time, the highest first
        for (int bin = threadIdx.x; bin < 256; bin += BLOCK) bins.low[bin] = bins.high[bin] = 0;
        __syncthreads();
        for (int id = threadIdx.x; id < VOCAB_SIZE; id += BLOCK) {
            u32 level = level_of(row, id);
            u32 key = what == TIES ? id : level;
            bool is_summed = what == TIES ? level == limit : level <= limit;
            bool has_prefix = shift == 24 || (key ^ prefix) >> (shift + 8) == 0;
            if (is_summed && has_prefix) add(bins, key >> shift & 255, what == WEIGHT ? weight_of(level) : 1);
        }
        __syncthreads();
        for (int group = threadIdx.x; group < 16; group += BLOCK) {
            groups[group] = 0;
            for (int i = 0; i < 16; i++) groups[group] += value_of(bins, 16 * group + i);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            int group = 0;
            while (group < 15 && sum + groups[group] < goal) sum += groups[group++];
            int bin = 16 * group;
            while (bin < 16 * group + 15 && sum + value_of(bins, bin) < goal) sum += value_of(bins, bin++);
            chosen = bin;
            chosen_before = sum;
        }
        __syncthreads();
        prefix |= chosen << shift;
        sum = chosen_before;
        *at = value_of(bins, chosen);
        __syncthreads();
    }
    *before = sum;
    return prefix;
}

// The likeliest token, of equally likely ones that with the lowest id.
static __device__ int likeliest(const Row& row) {
    int first = VOCAB_SIZE;
    for (int id = threadIdx.x; id < VOCAB_SIZE; id += BLOCK)
        if (id < first && adjusted_logit(row, id) == row.peak) first = id;
    return (int)-block_max((float)-first);
}

// A token drawn in proportion to the weights of those that the filters leave.
static __device__ int drawn(const Row& row, const Record& record, u64 random) {
    __shared__ u64 lanes[LANES], groups[LANES / GROUP], weights[LANE_SIZE], rest;
    __shared__ int lane, token_id;
    u32 limit = NO_LEVEL - 1;      // the last level that stays
    int last_tie = VOCAB_SIZE - 1;  // the last id that stays there
    u64 before, at;
    if (record.top_k > 0 && record.top_k < VOCAB_SIZE) {
        u32 level = key_that_reaches(row, record.top_k, TOKENS, limit, &before, &at);
        limit = level < limit ? level : limit;
    }
    if (record.top_p < 1) {
        for (int i = threadIdx.x; i < LANES; i += BLOCK) {
            u64 sum = 0;
            for (int id = i; id < VOCAB_SIZE; id += LANES) {
                u32 level = level_of(row, id);
                if (level <= limit) sum += weight_of(level);
            }
            lanes[i] = sum;
        }
        u64 goal = (u64)ceil((double)lanes_total(lanes, groups) * record.top_p);
        if (goal < 1) goal = 1;
        limit = key_that_reaches(row, goal, WEIGHT, limit, &before, &at);
        u64 weight = weight_of(limit);
        if (goal - before <= at - weight) {  // not all of the last level stay: those with the lowest ids
            u64 num_ties = (goal - before + weight - 1) / weight;
            last_tie = key_that_reaches(row, num_ties, TIES, limit, &before, &at);
        }
    }
    u64 lightest = (u64)(record.min_p * WEIGHT_ONE);

    for (int i = threadIdx.x; i < LANES; i += BLOCK) {
        u64 sum = 0;
        for (int id = i; id < VOCAB_SIZE; id += LANES) sum += kept_weight(row, id, limit, last_tie, lightest);
        lanes[i] = sum;
    }
    u64 total = lanes_total(lanes, groups);
    if (threadIdx.x == 0) {
        u64 target = __umul64hi(random, total);  // 0 … total - 1
        int group = 0;
        while (target >= groups[group]) target -= groups[group++];
        int i = GROUP * group;
        while (target >= lanes[i]) target -= lanes[i++];
        lane = i;
        rest = target;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < LANE_SIZE; i += BLOCK) {
        int id = lane + LANES * i;
        weights[i] = id < VOCAB_SIZE ? kept_weight(row, id, limit, last_tie, lightest) : 0;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        int i = 0;
        u64 target = rest;
        while (target >= weights[i]) target -= weights[i++];
        token_id = lane + LANES * i;
    }
    __syncthreads();
    return token_id;
}

// logits [rows, VOCAB_SIZE]; input_ids, positions [rows]: the state of each row, put one step on;
// records [rows]; logit_bias, repetition_penalty, token_counts [rows, VOCAB_SIZE] of adjusted rows;
// token_ids [rows]: what is reported.
extern "C" __global__ void __launch_bounds__(BLOCK) sample(
    const float* logits, int* input_ids, int* positions, const Record* records, float* logit_bias,
    float* repetition_penalty, u32* token_counts, int* token_ids) {
    int row_index = blockIdx.x;
    size_t first = (size_t)row_index * VOCAB_SIZE;
    const Record& record = records[row_index];
    int position = positions[row_index];
    __syncthreads();  // before thread 0 writes what all have read

    int next_id = record.fed_tokens[position + 1 < NUM_FED_TOKENS ? position + 1 : NUM_FED_TOKENS - 1];
    int report = FED;
    if (record.holds == STANDS) {
        report = HELD;
    } else if (next_id < 0) {
        Row row = {logits + first, 0, 0, 0, 0, record.temperature};
        if (record.is_adjusted) {
            row.logit_bias = logit_bias + first;
            row.repetition_penalty = repetition_penalty + first;
        }
        if (position + 1 < record.min_length) row.suppressed_ids = record.eos_token_ids;
        float peak = -INFINITE;
        for (int id = threadIdx.x; id < VOCAB_SIZE; id += BLOCK) {
            float logit = adjusted_logit(row, id);
            if (!(logit < INFINITE)) peak = INFINITE;  // NaN too
            if (logit > peak) peak = logit;
        }
        row.peak = block_max(peak);
        if (row.peak - row.peak != 0) {
            report = UNRESOLVED;  // nothing left, or not a number: the host says which
        } else {
            int step = position - (record.prompt_length - 1);
            u64 word = (u64)(step > 0 ? step : 0) * WORDS_PER_STEP;
            next_id = record.temperature == 0
                          ? likeliest(row)
                          : drawn(row, record, philox(record.seed, record.sample_index, word));
            report = record.holds ? HELD - next_id : next_id;
        }
    }

    if (threadIdx.x == 0) {
        token_ids[row_index] = report;
        if (report >= FED) {
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
}
