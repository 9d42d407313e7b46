// Shared memory of a block of persistent.cu, its transfers, and the synchronization of threads and blocks. Preceded by
// rules.cuh and activation.cuh.
//
// persistent.py defines the sizes: INPUTS, HIDDEN and CLASSES of the network; BATCH, samples of a full batch; UNITS,
// hidden units of a block; BLOCKS; THREADS of a block; BUFFERS, batches of rows in shared memory; PIXELS, 1 for uint8.

#define WARPS (THREADS / 32)
#define STRIDE ((INPUTS + 15) / 16 * 16)  // of a row of inputs in shared memory; elements beyond INPUTS stay 0
#define QUADS (STRIDE / 4)
#define ROWS ((BATCH + 3) / 4 * 4)
#define LOGITS (BATCH * CLASSES)
#define READS 8  // concurrent reads of a thread

#if PIXELS
typedef unsigned char value;
#else
typedef real value;
#endif

// Four consecutive elements, read and written together.
template <typename T> struct alignas(4 * sizeof(T)) Four {
    T v[4];
};
template <typename T> __device__ Four<T>& four(T* row, int index) { return ((Four<T>*)row)[index]; }
template <typename T> __device__ const Four<T>& four(const T* row, int index) { return ((const Four<T>*)row)[index]; }

// The unit in which rows are copied: 16 bytes if rows are a multiple of it.
#if INPUTS % 16 == 0
typedef Four<int> piece;
#else
typedef value piece;
#endif
#define PIECES (INPUTS * (int)sizeof(value) / (int)sizeof(piece))

// The parameters of a block, or their velocity.
struct State {
    alignas(32) real weight1[UNITS][STRIDE];  // columns of W1, as rows
    real weight2[UNITS][CLASSES], bias1[UNITS], bias2[CLASSES];
};

// The shared memory of a block.
struct Block {
    State parameters, velocity;
    alignas(32) real a[ROWS][UNITS];
    alignas(32) real delta1[ROWS][UNITS];
    real delta2[BATCH][CLASSES | 1];  // first the logits; an odd width avoids bank conflicts
    alignas(32) value rows[BUFFERS][ROWS][STRIDE];
};
static_assert(sizeof(Block) <= SHARED_BYTES, "persistent.py reserves too little shared memory");

// The same tensors of the whole network, in global memory.
struct Tensors {
    real *weight1, *bias1, *weight2, *bias2;
};

__device__ void move(real& here, real& there, bool out)
{
    if (out)
        there = here;
    else
        here = there;
}

// Read the block's part of the tensors, or write it if `out`. Only the first block writes b2.
__device__ void move_state(State& own, const Tensors& all, int first, int units, bool out)
{
    for (int k = threadIdx.x; k < INPUTS * units; k += THREADS)
        move(own.weight1[k % units][k / units], all.weight1[(int64)(k / units) * HIDDEN + first + k % units], out);
    for (int k = threadIdx.x; k < units * CLASSES; k += THREADS)
        move(own.weight2[k / CLASSES][k % CLASSES], all.weight2[first * CLASSES + k], out);
    for (int k = threadIdx.x; k < units; k += THREADS)
        move(own.bias1[k], all.bias1[first + k], out);
    if (!out || first == 0)
        for (int k = threadIdx.x; k < CLASSES; k += THREADS)
            move(own.bias2[k], all.bias2[k], out);
}

// Copy the rows of a batch to shared memory. A thread starts READS reads before it waits for the first.
__device__ void gather(value (*rows)[STRIDE], const value* __restrict__ source, const int64* __restrict__ order,
                       int batch)
{
    const int pieces = batch * PIECES;
    for (int first = threadIdx.x; first < pieces; first += READS * THREADS) {
        piece read[READS];
#pragma unroll
        for (int r = 0; r < READS; r++) {
            int k = min(first + r * THREADS, pieces - 1);  // repeats the last piece instead of branching
            read[r] = ((const piece*)(source + order[k / PIECES] * INPUTS))[k % PIECES];
        }
#pragma unroll
        for (int r = 0; r < READS; r++) {
            int k = min(first + r * THREADS, pieces - 1);
            ((piece*)rows[k / PIECES])[k % PIECES] = read[r];
        }
    }
}

// A grid-wide barrier in two parts, between which a block can do other work. `arrived` starts at 0 in every launch. The
// fences make writes of any thread before `arrive` visible to all threads after `wait`.
__device__ void arrive(unsigned* arrived)
{
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        atomicAdd(arrived, 1u);
    }
}

__device__ void wait(const unsigned* arrived, unsigned expected)
{
    if (threadIdx.x == 0) {
        while (*(const volatile unsigned*)arrived < expected)
            __nanosleep(20);
        __threadfence();
    }
    __syncthreads();
}
