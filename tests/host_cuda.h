// The part of CUDA that the kernels use, on the CPU: the grid is a loop, and threads run in turns.
// If a kernel has barriers, each thread is a fiber that continues after all have arrived. Blocks run one after the other.
// Fences have no effect: a missing one is not detected.
#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <math.h>
#include <memory>
#include <random>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__ inline
#define __shared__ static
#define __restrict__
#define __launch_bounds__(...)

using std::max;
using std::min;

struct Extent { unsigned x, y, z; };
static Extent gridDim, blockDim, blockIdx, threadIdx;

namespace host {

const size_t STACK = 65536 + 64 * 7;  // no power of two: the tops of stacks would share one set of the cache

// A barrier for a number of threads.
struct Meeting {
    unsigned arrived = 0, held = 0;
};

struct Warp {
    Meeting meeting;
    double values[32];
};

struct alignas(64) Line { char bytes[64]; };

struct Block {
    unsigned threads;
    Meeting barrier;
    std::vector<Warp> warps;
    std::vector<Line> shared;
};

struct Fiber {
    Extent index;
    unsigned number;  // in the block
    Block* block;
    bool started = false, done = false;
    char* stack;
    ucontext_t context;
    jmp_buf place;
};

static ucontext_t first_scheduler;
static jmp_buf scheduler;
static Fiber* current;
static std::function<void()> body;
static unsigned order;  // 0: threads in order; otherwise a random order
static bool progress;

static void enter()
{
    body();
    current->done = progress = true;
    _longjmp(scheduler, 1);
}

static void resume(Fiber& fiber)
{
    current = &fiber;
    threadIdx = fiber.index;
    if (_setjmp(scheduler))
        return;
    if (fiber.started)
        _longjmp(fiber.place, 1);
    fiber.started = true;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = STACK;
    makecontext(&fiber.context, enter, 0);
    swapcontext(&first_scheduler, &fiber.context);
}

// Yield to the other threads.
static void pause()
{
    if (!_setjmp(current->place))
        _longjmp(scheduler, 1);
}

static void meet(Meeting& meeting, unsigned threads)
{
    unsigned number = meeting.held;
    if (++meeting.arrived == threads) {
        meeting.arrived = 0;
        meeting.held++;
        progress = true;
    }
    while (meeting.held == number)
        pause();
}

// Run the threads of a block in turns until all have finished.
static void run(Block& block)
{
    static std::vector<std::unique_ptr<char[]>> stacks;  // kept, since new ones take longer than most kernels
    block.threads = blockDim.x * blockDim.y * blockDim.z;
    block.warps.resize((block.threads + 31) / 32);
    std::vector<Fiber> fibers(block.threads);
    std::vector<Fiber*> waiting;
    for (unsigned i = 0; i < block.threads; i++) {
        if (stacks.size() <= i)
            stacks.emplace_back(new char[STACK]);
        fibers[i].index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
        fibers[i].number = i;
        fibers[i].block = &block;
        fibers[i].stack = stacks[i].get();
        waiting.push_back(&fibers[i]);
    }
    std::mt19937 random(order);
    while (!waiting.empty()) {
        progress = false;
        if (order != 0)
            std::shuffle(waiting.begin(), waiting.end(), random);
        for (Fiber* fiber : waiting)
            resume(*fiber);
        if (!progress) {
            fprintf(stderr, "threads wait for others that do not come\n");
            abort();
        }
        auto done = [](Fiber* fiber) { return fiber->done; };
        waiting.erase(std::remove_if(waiting.begin(), waiting.end(), done), waiting.end());
    }
}

static void launch(const unsigned* grid, const unsigned* block, bool barriers, unsigned shared_bytes,
                   const std::function<void()>& kernel)
{
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    body = kernel;
    for (unsigned z = 0; z < grid[2]; z++)
        for (unsigned y = 0; y < grid[1]; y++)
            for (unsigned x = 0; x < grid[0]; x++) {
                blockIdx = {x, y, z};
                if (barriers) {
                    Block together;
                    together.shared.resize(shared_bytes / sizeof(Line) + 1);
                    memset(together.shared.data(), 0xff, shared_bytes);  // NaN
                    run(together);
                    continue;
                }
                for (threadIdx.z = 0; threadIdx.z < block[2]; threadIdx.z++)
                    for (threadIdx.y = 0; threadIdx.y < block[1]; threadIdx.y++)
                        for (threadIdx.x = 0; threadIdx.x < block[0]; threadIdx.x++)
                            kernel();
            }
}

static inline void* shared_memory() { return current->block->shared.data(); }

}  // namespace host

extern "C" void set_order(unsigned order) { host::order = order; }

static inline void __syncthreads() { host::meet(host::current->block->barrier, host::current->block->threads); }
static inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y)
{
    return (unsigned long long)((unsigned __int128)x * y >> 64);
}
static inline float __fadd_rn(float x, float y) { return x + y; }
static inline float __fmul_rn(float x, float y) { return x * y; }
static inline void sincospi(double x, double* sine, double* cosine)
{
    *sine = sin(M_PI * x);
    *cosine = cos(M_PI * x);
}
static inline void __threadfence() {}
template <typename T> static inline T __ldcg(const T* address) { return *address; }

static inline unsigned atomicAdd(unsigned* address, unsigned value)
{
    host::progress = true;
    *address += value;
    return *address - value;
}

template <typename T> static inline T __shfl_xor_sync(unsigned, T value, int mask)
{
    unsigned number = host::current->number;
    host::Warp& warp = host::current->block->warps[number / 32];
    warp.values[number % 32] = value;
    host::meet(warp.meeting, 32);
    T other = warp.values[number % 32 ^ mask];
    host::meet(warp.meeting, 32);  // no thread writes the next value before all have read this one
    return other;
}
