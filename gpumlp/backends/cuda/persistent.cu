// Many training steps of a network with one hidden layer in one launch, with the weights in shared memory. Preceded by
// rules.cuh, activation.cuh and persistent_block.cuh; persistent.py defines which steps it supports.
//
// Each block stores UNITS hidden units in its shared memory: their columns of W1, their rows of W2, their b1, and the
// velocities. Every block stores b2. A step:
//
//   1. s1 of the block's units, summed over all inputs, and a1 = h(s1)
//   2. their partial logits, a1 W2, written to global memory: the only data that blocks exchange
//   3. a grid-wide barrier
//   4. the logits: b2 plus the partial logits of all blocks, summed by every block in the same order; loss and delta2
//   5. delta1 = (delta2 W2^T) * h' of the block's units, with W2 from before this step's update
//   6. gradients, penalty and SGD step of the block's parameters; every block computes the same b2
//
// One barrier per step is sufficient, because the partial logits alternate between two buffers. A block overwrites a
// buffer two steps later, after the barrier of the step in between, at which every block arrives only after it has read
// the previous contents of the buffer in 4.
//
// No sum depends on the order in which threads run, and a step depends only on parameters, velocity and batch. The
// result of an epoch is therefore the same, bit for bit, for any division into launches.

struct Rules {
    int sgd;
    real momentum, step_size, l2, l1;

    __device__ void update_bias(real* b, real* velocity, real g) const
    {
        step_of_sgd(b, velocity, g, sgd, momentum, step_size);
    }
    __device__ void update_weight(real* w, real* velocity, real g) const
    {
        update_bias(w, velocity, add_penalty(g, *w, l2, l1));
    }
};

// a1 = h(scale x W1 + b1) of the block's units. A warp computes four samples and four units at a time, with the inputs
// divided among its lanes: each weight read is used for four samples, and each input for four units.
__device__ void forward(Block& own, const value (*rows)[STRIDE], int batch, int units, real scale)
{
    int lane = threadIdx.x % 32;
    for (int task = threadIdx.x / 32; task < ROWS / 4 * (UNITS / 4); task += WARPS) {
        int first_row = task % (ROWS / 4) * 4, first_unit = task / (ROWS / 4) * 4;
        if (first_row >= batch)
            continue;
        real sums[16] = {};
        for (int q = lane; q < QUADS; q += 32) {
            Four<real> w[4];
#pragma unroll
            for (int u = 0; u < 4; u++)
                w[u] = four(own.parameters.weight1[first_unit + u], q);
#pragma unroll
            for (int b = 0; b < 4; b++) {
                Four<value> x = four(rows[first_row + b], q);
#pragma unroll
                for (int i = 0; i < 4; i++)
#pragma unroll
                    for (int u = 0; u < 4; u++)
                        sums[4 * b + u] += (real)x.v[i] * w[u].v[i];
            }
        }
        real s = scale * sum_over_warp(sums, lane);
        int b = first_row + lane / 8, u = first_unit + lane / 2 % 4;
        if (lane % 2 == 0)  // units beyond the last one stay 0
            own.a[b][u] = u < units ? activate(s + own.parameters.bias1[u]) : (real)0;
    }
}

// Write the partial logits of the block's units to global memory.
__device__ void write_partial_logits(const Block& own, int batch, real* part)
{
    for (int k = threadIdx.x; k < batch * CLASSES; k += THREADS) {
        real sum = 0;
        for (int u = 0; u < UNITS; u++)
            sum += own.a[k / CLASSES][u] * own.parameters.weight2[u][k % CLASSES];
        part[k] = sum;
    }
}

// The logits: b2 plus the partial logits of all blocks.
__device__ void sum_partial_logits(Block& own, int batch, const real* parts)
{
    for (int k = threadIdx.x; k < batch * CLASSES; k += THREADS) {
        real sum = own.parameters.bias2[k % CLASSES];
#pragma unroll 32
        for (int block = 0; block < BLOCKS; block++)
            sum += __ldcg(parts + block * LOGITS + k);  // bypasses the L1 cache, which may contain older values
        own.delta2[k / CLASSES][k % CLASSES] = sum;
    }
}

// delta1 = (delta2 W2^T) * h' of the block's units.
__device__ void backward(Block& own, int batch)
{
    for (int k = threadIdx.x; k < batch * UNITS; k += THREADS) {
        int b = k / UNITS, u = k % UNITS;
        real sum = 0;
        for (int c = 0; c < CLASSES; c++)
            sum += own.delta2[b][c] * own.parameters.weight2[u][c];
        own.delta1[b][u] = sum * derivative(own.a[b][u]);
    }
}

// Gradient and update of the weights between four inputs and four units.
__device__ void update_weight1(Block& own, const value (*rows)[STRIDE], int batch, int q, int first_unit, real scale,
                               const Rules& rules)
{
    real g[4][4] = {};
#pragma unroll 4
    for (int b = 0; b < batch; b++) {
        Four<value> x = four(rows[b], q);
        Four<real> delta = four(own.delta1[b], first_unit / 4);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int u = 0; u < 4; u++)
                g[u][i] += (real)x.v[i] * delta.v[u];
    }
#pragma unroll
    for (int u = 0; u < 4; u++) {
        Four<real> w = four(own.parameters.weight1[first_unit + u], q);
        Four<real> v = four(own.velocity.weight1[first_unit + u], q);
#pragma unroll
        for (int i = 0; i < 4; i++)
            rules.update_weight(&w.v[i], &v.v[i], scale * g[u][i]);
        four(own.parameters.weight1[first_unit + u], q) = w;
        four(own.velocity.weight1[first_unit + u], q) = v;
    }
}

// Gradients and updates of the block's parameters: tiles of W1, then single elements of W2, b1 and b2.
__device__ void update(Block& own, const value (*rows)[STRIDE], int batch, real scale, const Rules& rules)
{
    const int tiles = QUADS * (UNITS / 4), weights2 = UNITS * CLASSES;
    State &p = own.parameters, &v = own.velocity;
    for (int task = threadIdx.x; task < tiles + weights2 + UNITS + CLASSES; task += THREADS) {
        if (task < tiles) {
            update_weight1(own, rows, batch, task % QUADS, task / QUADS * 4, scale, rules);
            continue;
        }
        int k = task - tiles;
        real g = 0;
        if (k < weights2) {
            int u = k / CLASSES, c = k % CLASSES;
            for (int b = 0; b < batch; b++)
                g += own.a[b][u] * own.delta2[b][c];
            rules.update_weight(&p.weight2[u][c], &v.weight2[u][c], g);
        } else if (k < weights2 + UNITS) {
            int u = k - weights2;
            for (int b = 0; b < batch; b++)
                g += own.delta1[b][u];
            rules.update_bias(&p.bias1[u], &v.bias1[u], g);
        } else {
            int c = k - weights2 - UNITS;
            for (int b = 0; b < batch; b++)
                g += own.delta2[b][c];
            rules.update_bias(&p.bias2[c], &v.bias2[c], g);
        }
    }
}

// Train on the samples from `start` to `stop` of the order, in batches of BATCH; the last one may be smaller.
//
// Requires a cooperative launch, so that all blocks are resident, with (1, BLOCKS) blocks and SHARED_BYTES each.
// `rates` contains the learning rate of each batch, `parts` has 2 x BLOCKS x LOGITS elements, `arrived` is 0. The
// velocities are null pointers for plain SGD.
extern "C" __global__ __launch_bounds__(THREADS, 1) void train_steps(
    const value* source, const int64* order, const int64* labels, int64 start, int64 stop, real scale, int sgd,
    real momentum, const real* rates, real l2, real l1, real* weight1, real* bias1, real* weight2, real* bias2,
    real* velocity1, real* velocity_bias1, real* velocity2, real* velocity_bias2, real* losses, bool* correct,
    real* parts, unsigned* arrived)
{
    extern __shared__ Block memory[];
    Block& own = memory[0];
    const int block = blockIdx.y, first = block * UNITS, units = min(UNITS, HIDDEN - first);
    Rules rules = {sgd, momentum, 0, l2, l1};
    const Tensors tensors = {weight1, bias1, weight2, bias2};
    const Tensors velocities = {velocity1, velocity_bias1, velocity2, velocity_bias2};

    for (int k = threadIdx.x; k < (int)(sizeof(Block) / sizeof(int)); k += THREADS)
        ((int*)&own)[k] = 0;
    __syncthreads();
    move_state(own.parameters, tensors, first, units, false);
    if (sgd != PLAIN)
        move_state(own.velocity, velocities, first, units, false);
    gather(own.rows[0], source, order + start, (int)min((int64)BATCH, stop - start));
    __syncthreads();

    unsigned step = 0;
    for (int64 begin = start; begin < stop; begin += BATCH, step++) {
        rules.step_size = rates[step];
        const int64 next = begin + BATCH;
        const int batch = (int)min((int64)BATCH, stop - begin);
        const int next_batch = (int)max((int64)0, min((int64)BATCH, stop - next));
        const value(*rows)[STRIDE] = own.rows[step % BUFFERS];
        real* place = parts + (int64)(step % 2) * BLOCKS * LOGITS;

        forward(own, rows, batch, units, scale);
        __syncthreads();
        write_partial_logits(own, batch, place + block * LOGITS);
        arrive(arrived);
        if (BUFFERS == 2)  // while waiting for the other blocks
            gather(own.rows[(step + 1) % BUFFERS], source, order + next, next_batch);
        wait(arrived, (step + 1) * BLOCKS);
        sum_partial_logits(own, batch, place);
        __syncthreads();
        for (int b = threadIdx.x; b < batch; b += THREADS) {
            real loss;
            bool hit;
            softmax_of_sample(own.delta2[b], labels[begin + b], batch, CLASSES, &loss, &hit);
            if (block == 0) {
                losses[begin + b] = loss;
                correct[begin + b] = hit;
            }
        }
        __syncthreads();
        backward(own, batch);
        __syncthreads();
        update(own, rows, batch, scale, rules);
        __syncthreads();
        if (BUFFERS == 1 && next_batch > 0) {
            gather(own.rows[0], source, order + next, next_batch);
            __syncthreads();
        }
    }

    move_state(own.parameters, tensors, first, units, true);
    if (sgd != PLAIN)
        move_state(own.velocity, velocities, first, units, true);
}
