// Many training steps of a network of one hidden layer in one launch, its weights on chip from the first to the last.
// rules.cuh, activation.cuh and persistent_block.cuh are read before this text; persistent.py says which steps it runs.
//
// Each block keeps UNITS hidden units in its shared memory: their columns of W1, their rows of W2, and what momentum
// remembers of both. Every block keeps b2. A step of a batch:
//
//   1. s1 of the own units, summed over all inputs, and a1 = h(s1)
//   2. their part of the logits, a1 W2, goes to global memory: all that blocks tell each other
//   3. a barrier for the whole grid
//   4. the logits: b2 and the parts of all blocks, summed by every block in the same order; softmax, loss and delta2
//   5. delta1 = (delta2 W2^T) * h' of the own units, from W2 as it was before this step's update
//   6. gradients, penalty and SGD step of what the block keeps; each computes the same b2
//
// One barrier a step is enough, because the parts of the logits have two places, used in turn. A block writes into a
// place again two steps later, behind the barrier of the step between; there every block arrives only after it has
// read, in 4, what the place held before.
//
// No sum depends on the order in which threads happen to run, and a step depends on nothing but parameters, velocity
// and batch: however an epoch is split into launches, its result is the same, bit for bit.

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

// a1 = h(scale x W1 + b1) of the own units. A warp takes four samples and four units at a time, its lanes share the
// inputs: so a weight, once read, is used for four samples, and an input for four units.
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
        if (lane % 2 == 0)  // the last block may have room for more units than there are: they stay 0
            own.a[b][u] = u < units ? activate(s + own.parameters.bias1[u]) : (real)0;
    }
}

// What the own units add to the logits of each sample, in global memory.
__device__ void give_part(const Block& own, int batch, real* part)
{
    for (int k = threadIdx.x; k < batch * CLASSES; k += THREADS) {
        real sum = 0;
        for (int u = 0; u < UNITS; u++)
            sum += own.a[k / CLASSES][u] * own.parameters.weight2[u][k % CLASSES];
        part[k] = sum;
    }
}

// The logits, from b2 and the parts of all blocks.
__device__ void take_parts(Block& own, int batch, const real* parts)
{
    for (int k = threadIdx.x; k < batch * CLASSES; k += THREADS) {
        real sum = own.parameters.bias2[k % CLASSES];
#pragma unroll 32
        for (int block = 0; block < BLOCKS; block++)
            sum += __ldcg(parts + block * LOGITS + k);  // past the first-level cache, which may hold older values
        own.delta2[k / CLASSES][k % CLASSES] = sum;
    }
}

// delta1 = (delta2 W2^T) * h' of the own units.
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

// Gradient and step of four units' weights of four inputs.
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

// Gradients and steps of all that the block keeps: tiles of W1, then single elements of W2, b1 and b2.
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

// The samples from `start` to `stop` of the order, in batches of BATCH and what is left.
//
// To be launched cooperatively, as (1, BLOCKS) blocks, so that all are there at once, with SHARED_BYTES each.
// `rates` holds the learning rate of each batch, `parts` 2 x BLOCKS x LOGITS, `arrived` is 0. Velocities are null with
// plain SGD.
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
        give_part(own, batch, place + block * LOGITS);
        arrive(arrived);
        if (BUFFERS == 2)  // while the others arrive
            gather(own.rows[(step + 1) % BUFFERS], source, order + next, next_batch);
        wait(arrived, (step + 1) * BLOCKS);
        take_parts(own, batch, place);
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
