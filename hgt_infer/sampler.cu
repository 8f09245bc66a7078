// The sampler on CUDA: one block per row draws the row's next token and puts its slot's state one step on.
//
// Every choice rests on a token's level: how far its logit lies below the row's largest one, over the
// temperature, as a fixed-point number. A level gives a weight, exp(-level) as a whole number; levels and sums
// of weights are exact from there, so that no result depends on the order of the threads or on their number.
// Filters, their order and their borders are those of hgt_infer/sampling.py. VOCAB_SIZE and BLOCK are given to
// the compiler. Layout and meaning of a record: hgt_infer/slot_record.py.

typedef unsigned int u32;
typedef unsigned long long u64;

#define NUM_FED_TOKENS 65
#define NUM_EOS_TOKENS 8
#define WORDS_PER_STEP 5

#define FED (-1)
#define UNRESOLVED (-2)
#define HELD (-3)

#define LEVELS_PER_NAT 134217728.0f  // 2^27: floats above 1/8 have levels of their own
#define MAX_NATS 27.5f               // exp(-27.5) · 2^40 is 1.2
#define WEIGHT_ONE 1099511627776.0f  // 2^40: the weight of the likeliest token
#define NO_LEVEL 0xffffffffu         // too light to be drawn, or banned
#define ALL_TIES 0xffffffffu
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

// Of the whole block. Every thread calls them with its value, and gets the same result but for the scan.

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

// The sum over the threads before this one; *total is that over all.
static __device__ u64 block_scan(u64 value, u64* total) {
    __shared__ u64 sums[BLOCK];
    int thread = threadIdx.x;
    sums[thread] = value;
    __syncthreads();
    for (int distance = 1; distance < BLOCK; distance *= 2) {
        u64 before = thread >= distance ? sums[thread - distance] : 0;
        __syncthreads();
        sums[thread] += before;
        __syncthreads();
    }
    u64 through = sums[thread];
    *total = sums[BLOCK - 1];
    __syncthreads();
    return through - value;
}

// The lowest level T at which the levels 0 … T, none above `limit`, reach `goal`: tokens, or their weight.
// *before is what those below T reach. A goal that is out of reach gives NO_LEVEL.
static __device__ u32 level_that_reaches(const Row& row, u64 goal, bool by_weight, u32 limit, u64* before) {
    __shared__ u64 bins[256], groups[16], chosen_before;
    __shared__ u32 chosen;
    u32 prefix = 0;
    u64 sum = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {  // a digit at a time, the highest first
        for (int bin = threadIdx.x; bin < 256; bin += BLOCK) bins[bin] = 0;
        __syncthreads();
        for (int id = threadIdx.x; id < VOCAB_SIZE; id += BLOCK) {
            u32 level = level_of(row, id);
            bool has_prefix = shift == 24 || (level ^ prefix) >> (shift + 8) == 0;
            if (level <= limit && level != NO_LEVEL && has_prefix)
                atomicAdd(&bins[level >> shift & 255], by_weight ? weight_of(level) : 1ull);
        }
        __syncthreads();
        for (int group = threadIdx.x; group < 16; group += BLOCK) {
            u64 group_sum = 0;
            for (int i = 0; i < 16; i++) group_sum += bins[16 * group + i];
            groups[group] = group_sum;
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            int group = 0;
            while (group < 15 && sum + groups[group] < goal) sum += groups[group++];
            int bin = 16 * group;
            while (bin < 16 * group + 15 && sum + bins[bin] < goal) sum += bins[bin++];
            chosen = bin;
            chosen_before = sum;
        }
        __syncthreads();
        prefix |= chosen << shift;
        sum = chosen_before;
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
    __shared__ int token_id;
    u32 limit = NO_LEVEL - 1;      // the last level that stays
    u32 num_ties = ALL_TIES;       // tokens that stay of those at the limit, the lowest ids
    u64 before, total = 0, count;
    if (record.top_k > 0 && record.top_k < VOCAB_SIZE) {
        u32 level = level_that_reaches(row, record.top_k, false, limit, &before);
        limit = level < limit ? level : limit;
    }
    if (record.top_p < 1) {
        u64 sum = 0;
        for (int id = threadIdx.x; id < VOCAB_SIZE; id += BLOCK) {
            u32 level = level_of(row, id);
            if (level <= limit) sum += weight_of(level);
        }
        block_scan(sum, &total);
        u64 goal = (u64)ceil((double)total * record.top_p);
        if (goal < 1) goal = 1;
        limit = level_that_reaches(row, goal, true, limit, &before);
        u64 weight = weight_of(limit);
        num_ties = (u32)((goal - before + weight - 1) / weight);
    }
    u64 lightest = (u64)(record.min_p * WEIGHT_ONE);
    u64 tie_weight = weight_of(limit) < lightest ? 0 : weight_of(limit);

    // Each thread sums over ids of its own that lie side by side, so that ids keep their order over threads.
    const int chunk = (VOCAB_SIZE + BLOCK - 1) / BLOCK;
    int begin = threadIdx.x * chunk, end = begin + chunk < VOCAB_SIZE ? begin + chunk : VOCAB_SIZE;
    u64 sum = 0, ties = 0;
    for (int id = begin; id < end; id++) {
        u32 level = level_of(row, id);
        if (level < limit) {
            u64 weight = weight_of(level);
            sum += weight < lightest ? 0 : weight;
        } else if (level == limit) {
            ties++;
        }
    }
    u64 ties_before = block_scan(ties, &count);
    u64 ties_left = ties_before < num_ties ? num_ties - ties_before : 0;
    sum += (ties < ties_left ? ties : ties_left) * tie_weight;
    u64 through = block_scan(sum, &total);
    u64 target = __umul64hi(random, total);  // 0 … total - 1
    if (through <= target && target < through + sum) {
        for (int id = begin; id < end; id++) {
            u32 level = level_of(row, id);
            u64 weight = level < limit ? weight_of(level) : 0;
            if (weight < lightest) weight = 0;
            if (level == limit && ties_left > 0) {
                weight = tie_weight;
                ties_left--;
            }
            if (target < through + weight) {
                token_id = id;
                break;
            }
            through += weight;
        }
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
    if (record.holds == 2) {
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
