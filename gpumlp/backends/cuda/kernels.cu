// The CUDA kernels of the training operations; preceded by rules.cuh. base.py contains the reference implementations.
//
// Compiled with -DREAL=float or -DREAL=double by NVRTC when a GPU is first used. Without a GPU, tests compile this
// source for sm_80 and sm_90, and as C++ for the CPU, where they run it.
//
// Matrices are row-major and contiguous, and indices have 64 bits. No sum depends on the order in which threads run, so
// training is reproducible bit for bit.
//
// `position` is {samples, steps}, offsets added to the captured addresses and slots, so that a graph can be launched at
// any position of an epoch. It is a null pointer if the call is not part of a graph.

// The block size of column_sums, as in kernels.py.
#define SUM_COLUMNS 32
#define SUM_ROWS 32

// out[i, j] = source[rows[i], j] * scale
extern "C" __global__ void gather_pixels(const unsigned char* source, const int64* rows, int64 batch, int64 features,
                                         real scale, const int64* position, real* out)
{
    int64 shift = position ? position[0] : 0;
    for (int64 i = global_y(); i < batch; i += threads_y()) {
        const unsigned char* row = source + rows[shift + i] * features;
        for (int64 j = global_x(); j < features; j += threads_x())
            out[i * features + j] = (real)row[j] * scale;
    }
}

// out[i, j] = source[rows[i], j]
extern "C" __global__ void gather_rows(const real* source, const int64* rows, int64 batch, int64 features,
                                       const int64* position, real* out)
{
    int64 shift = position ? position[0] : 0;
    for (int64 i = global_y(); i < batch; i += threads_y()) {
        const real* row = source + rows[shift + i] * features;
        for (int64 j = global_x(); j < features; j += threads_x())
            out[i * features + j] = row[j];
    }
}

// sums[j] = sum over i of values[i, j]. A block sums 32 columns; each thread adds every 32nd row of one column.
extern "C" __global__ void column_sums(const real* values, int64 rows, int64 columns, real* sums)
{
    __shared__ real partial[SUM_ROWS][SUM_COLUMNS];
    int64 column = (int64)blockIdx.x * SUM_COLUMNS + threadIdx.x;
    real sum = 0;
    if (column < columns)
        for (int64 row = threadIdx.y; row < rows; row += SUM_ROWS)
            sum += values[row * columns + column];
    partial[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && column < columns) {
        for (int y = 1; y < SUM_ROWS; y++)
            sum += partial[y][threadIdx.x];
        sums[column] = sum;
    }
}

// Loss, correctness and error term, with one thread per sample: suitable for few classes.
extern "C" __global__ void softmax_cross_entropy(real* logits, const int64* labels, int64 batch, int64 classes,
                                                 const int64* position, real* losses, bool* correct)
{
    int64 shift = position ? position[0] : 0;
    for (int64 i = global_x(); i < batch; i += threads_x())
        softmax_of_sample(logits + i * classes, labels[shift + i], batch, classes, losses + shift + i,
                          correct + shift + i);
}

// The gradient of parameter i plus that of the penalty, for weights only; stored, as in the reference.
__device__ real penalised(real* gradient, const real* parameters, int64 i, int64 weights_start, int64 weights_stop,
                          real l2, real l1)
{
    real g = gradient[i];
    if (i < weights_start || i >= weights_stop || (l2 == (real)0 && l1 == (real)0))
        return g;
    g = add_penalty(g, parameters[i], l2, l1);
    gradient[i] = g;
    return g;
}

// The factors {step size, epsilon} of a step; a graph reads them from the device, since they change between launches.
__device__ const real* factors_of(const real* factors, int64 slot, const int64* position)
{
    return factors + 2 * (position[1] + slot);
}

extern "C" __global__ void sgd_step(real* parameters, real* gradient, real* velocity, int64 size, int64 weights_start,
                                    int64 weights_stop, real l2, real l1, int rule, real momentum, real step_size,
                                    const real* factors, int64 slot, const int64* position)
{
    if (position)
        step_size = factors_of(factors, slot, position)[0];
    for (int64 i = global_x(); i < size; i += threads_x()) {
        real g = penalised(gradient, parameters, i, weights_start, weights_stop, l2, l1);
        step_of_sgd(parameters + i, rule == PLAIN ? 0 : velocity + i, g, rule, momentum, step_size);
    }
}

extern "C" __global__ void adam_step(real* parameters, real* gradient, real* mean, real* mean_square, int64 size,
                                     int64 weights_start, int64 weights_stop, real l2, real l1, real beta1,
                                     real one_minus_beta1, real beta2, real one_minus_beta2, real step_size,
                                     real epsilon, const real* factors, int64 slot, const int64* position)
{
    if (position) {
        const real* own = factors_of(factors, slot, position);
        step_size = own[0];
        epsilon = own[1];
    }
    for (int64 i = global_x(); i < size; i += threads_x()) {
        real g = penalised(gradient, parameters, i, weights_start, weights_stop, l2, l1);
        real m = mean[i] * beta1 + g * one_minus_beta1;
        real v = mean_square[i] * beta2 + g * g * one_minus_beta2;
        mean[i] = m;
        mean_square[i] = v;
        parameters[i] -= m / (sqrt(v) + epsilon) * step_size;
    }
}

// position = {samples, steps}
extern "C" __global__ void set_position(int64* position, int64 samples, int64 steps)
{
    if (global_x() == 0) {
        position[0] = samples;
        position[1] = steps;
    }
}
