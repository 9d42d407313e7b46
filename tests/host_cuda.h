// Enough of CUDA to run kernels.cu on the processor: the grid is a loop, and a block's threads take turns.
// Where a kernel has barriers, each thread is a fiber that yields at __syncthreads(), so all arrive before any goes on.
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <math.h>
#include <memory>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__ static inline
#define __shared__ static

struct Extent { unsigned x, y, z; };
static Extent gridDim, blockDim, blockIdx, threadIdx;

namespace host {

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[65536]};
    Extent index;
    bool done = false;
};

static ucontext_t scheduler;
static Fiber* current;
static const std::function<void()>* body;

static void enter()
{
    (*body)();
    current->done = true;
    swapcontext(&current->context, &scheduler);
}

// Run all threads of a block to their next barrier, again and again, until all are done.
static void run_block(std::vector<Fiber>& fibers)
{
    for (Fiber& fiber : fibers) {
        fiber.done = false;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = 65536;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, enter, 0);
    }
    for (size_t done = 0; done < fibers.size();) {
        for (Fiber& fiber : fibers) {
            current = &fiber;
            threadIdx = fiber.index;
            swapcontext(&scheduler, &fiber.context);
            done += fiber.done;
        }
        if (done != 0 && done != fibers.size()) {
            fprintf(stderr, "some threads of a block ended while others wait at a barrier\n");
            abort();
        }
    }
}

static void launch(const unsigned* grid, const unsigned* block, bool barriers, const std::function<void()>& kernel)
{
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    body = &kernel;
    std::vector<Fiber> fibers;
    if (barriers) {
        fibers.resize(size_t(block[0]) * block[1] * block[2]);
        for (size_t i = 0; i < fibers.size(); i++)
            fibers[i].index = {unsigned(i % block[0]), unsigned(i / block[0] % block[1]),
                               unsigned(i / block[0] / block[1])};
    }
    for (blockIdx.z = 0; blockIdx.z < grid[2]; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < grid[1]; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < grid[0]; blockIdx.x++)
                if (barriers) {
                    run_block(fibers);
                } else {
                    for (threadIdx.z = 0; threadIdx.z < block[2]; threadIdx.z++)
                        for (threadIdx.y = 0; threadIdx.y < block[1]; threadIdx.y++)
                            for (threadIdx.x = 0; threadIdx.x < block[0]; threadIdx.x++)
                                kernel();
                }
}

}  // namespace host

static void __syncthreads() { swapcontext(&host::current->context, &host::scheduler); }
