// CUDA C++ on the host, as far as our kernels need it: the threads of a cluster are threads of the system.
#pragma once
#define ON_HOST
#define UNROLLED
#include <pthread.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(threads)

struct uint4 {
    unsigned x, y, z, w;
};
struct Index {
    int x, y;
};
static thread_local Index threadIdx, blockIdx, gridDim;

// Waits for a number of threads; for one it does nothing.
class Barrier {
  public:
    explicit Barrier(unsigned num_threads) : num_threads(num_threads) {
        pthread_barrier_init(&barrier, nullptr, num_threads);
    }
    ~Barrier() { pthread_barrier_destroy(&barrier); }
    void wait() {
        if (num_threads > 1) pthread_barrier_wait(&barrier);
    }

  private:
    unsigned num_threads;
    pthread_barrier_t barrier;
};

constexpr int LANES = BLOCK < 32 ? BLOCK : 32;

// What a block has; its memory is filled for each row with what no kernel may rely on.
struct Block {
    explicit Block(size_t shared_bytes) : barrier(BLOCK) {
        memory = (char*)aligned_alloc(16, (shared_bytes + 15) / 16 * 16);
        for (int warp = 0; warp < BLOCK / LANES; warp++) warps.push_back(new Barrier(LANES));
    }
    ~Block() {
        for (Barrier* warp : warps) delete warp;
        free(memory);
    }
    Barrier barrier;
    std::vector<Barrier*> warps;
    unsigned long long exchanged[BLOCK];
    char* memory;
};
static std::vector<Block*> blocks;  // of the cluster that runs
static Barrier* cluster;

static void* block_memory() { return blocks[blockIdx.x]->memory; }

template <typename T>
static T* peer(T* own, int rank) {
    return (T*)(blocks[rank]->memory + ((char*)own - blocks[blockIdx.x]->memory));
}

static void __syncthreads() { blocks[blockIdx.x]->barrier.wait(); }
static void cluster_sync() { cluster->wait(); }

// What lane `source` of the same warp gives; every lane calls it.
template <typename T>
static T exchange(T value, int source) {
    Block& block = *blocks[blockIdx.x];
    Barrier& warp = *block.warps[threadIdx.x / LANES];
    block.exchanged[threadIdx.x] = value;
    warp.wait();
    T result = block.exchanged[threadIdx.x / LANES * LANES + source];
    warp.wait();
    return result;
}
template <typename T>
static T __shfl_sync(unsigned, T value, int source) {
    return exchange(value, source);
}
template <typename T>
static T __shfl_xor_sync(unsigned, T value, int mask) {
    return exchange(value, threadIdx.x % LANES ^ mask);
}
template <typename T>
static T __shfl_up_sync(unsigned, T value, int distance) {
    int lane = threadIdx.x % LANES;
    return exchange(value, lane >= distance ? lane - distance : lane);
}

static unsigned atomicAdd(unsigned* address, unsigned value) {
    return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}

static unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}

static float __uint_as_float(unsigned bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
static float __int_as_float(int bits) { return __uint_as_float(bits); }
static unsigned __float_as_uint(float value) {
    unsigned bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

[[maybe_unused]] static float half_to_float(unsigned short bits) {
    int exponent = bits >> 10 & 31;
    float fraction = (float)(bits & 1023);
    float value = exponent == 31  ? (bits & 1023 ? NAN : INFINITY)
                  : exponent == 0 ? ldexpf(fraction, -24)
                                  : ldexpf(fraction + 1024, exponent - 25);
    return bits >> 15 ? -value : value;
}

// Runs a kernel whose arguments are all pointers, row after row, each by a cluster of blocks.
template <typename... Arguments, size_t... Indices>
static void launch(
    int num_rows, int cluster_size, size_t shared_bytes, void (*kernel)(Arguments...), void** arguments,
    std::index_sequence<Indices...>) {
    static std::mutex one_at_a_time;
    std::lock_guard<std::mutex> guard(one_at_a_time);
    Barrier all(BLOCK * cluster_size);
    cluster = &all;
    for (int rank = 0; rank < cluster_size; rank++) blocks.push_back(new Block(shared_bytes));
    auto run = [=](int rank, int thread) {
        gridDim = {cluster_size, num_rows};
        threadIdx = {thread, 0};
        for (int row = 0; row < num_rows; row++) {
            blockIdx = {rank, row};
            if (thread == 0) memset(blocks[rank]->memory, 0xa5, shared_bytes);
            cluster->wait();
            kernel((Arguments)arguments[Indices]...);
            cluster->wait();
        }
    };
    std::vector<std::thread> threads;
    for (int i = 1; i < BLOCK * cluster_size; i++) threads.emplace_back(run, i / BLOCK, i % BLOCK);
    run(0, 0);
    for (auto& thread : threads) thread.join();
    for (Block* block : blocks) delete block;
    blocks.clear();
}

template <typename... Arguments>
static void launch(
    int num_rows, int cluster_size, size_t shared_bytes, void (*kernel)(Arguments...), void** arguments) {
    launch(
        num_rows, cluster_size, shared_bytes, kernel, arguments, std::index_sequence_for<Arguments...>());
}
