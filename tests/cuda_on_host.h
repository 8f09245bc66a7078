// CUDA C++ on the host, as far as our kernels need it: the threads of a block are threads of the system.
#pragma once
#include <pthread.h>

#include <cmath>
#include <cstddef>
#include <cstring>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(threads)

struct Index {
    int x;
};
static thread_local Index threadIdx, blockIdx;
static pthread_barrier_t barrier;

static void __syncthreads() {
    if (BLOCK > 1) pthread_barrier_wait(&barrier);
}

static unsigned atomicAdd(unsigned* address, unsigned value) {
    return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}

static unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}

static float __int_as_float(int bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// Runs a kernel whose arguments are all pointers, block after block.
template <typename... Arguments, size_t... Indices>
static void launch(
    int num_blocks, void (*kernel)(Arguments...), void** arguments, std::index_sequence<Indices...>) {
    static std::mutex one_at_a_time;  // blocks share what is static
    std::lock_guard<std::mutex> guard(one_at_a_time);
    pthread_barrier_init(&barrier, nullptr, BLOCK);
    for (int block = 0; block < num_blocks; block++) {
        auto run = [=](int thread) {
            blockIdx.x = block;
            threadIdx.x = thread;
            kernel((Arguments)arguments[Indices]...);
        };
        std::vector<std::thread> threads;
        for (int thread = 1; thread < BLOCK; thread++) threads.emplace_back(run, thread);
        run(0);
        for (auto& thread : threads) thread.join();
    }
    pthread_barrier_destroy(&barrier);
}

template <typename... Arguments>
static void launch(int num_blocks, void (*kernel)(Arguments...), void** arguments) {
    launch(num_blocks, kernel, arguments, std::index_sequence_for<Arguments...>());
}
