// Types and functions shared by kernels.cu and persistent.cu, which it precedes.

typedef REAL real;
typedef long long int64;
typedef unsigned long long uint64;

__device__ int64 global_x() { return (int64)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ int64 global_y() { return (int64)blockIdx.y * blockDim.y + threadIdx.y; }
__device__ int64 threads_x() { return (int64)gridDim.x * blockDim.x; }
__device__ int64 threads_y() { return (int64)gridDim.y * blockDim.y; }

// The variants of SGD, numbered as in kernels.py.
#define PLAIN 0
#define MOMENTUM 1
#define NESTEROV 2
#define ACCUMULATED 3  // momentum, with the velocities of the weights written by matrix products

// Loss, correctness and error term of one sample; the error term overwrites its logits s.
__device__ void softmax_of_sample(real* s, int64 label, int64 batch, int64 classes, real* loss, bool* correct)
{
    int64 best = 0;
    for (int64 j = 1; j < classes; j++)
        if (s[j] > s[best])
            best = j;
    real largest = s[best], label_logit = s[label] - largest, total = 0;
    for (int64 j = 0; j < classes; j++) {
        s[j] = exp(s[j] - largest);
        total += s[j];
    }
    real divisor = total * (real)batch;
    for (int64 j = 0; j < classes; j++)
        s[j] = s[j] / divisor;
    s[label] -= (real)1 / (real)batch;
    *loss = log(total) - label_logit;
    *correct = best == label;
}

// The gradient g of the weight w plus that of the penalty.
__device__ real add_penalty(real g, real w, real l2, real l1)
{
    g += w * l2;
    g += l1 * (real)((w > (real)0) - (w < (real)0));
    return g;
}

// The SGD step of one parameter with the gradient g; plain SGD does not read the velocity.
__device__ void step_of_sgd(real* parameter, real* velocity, real g, int rule, real momentum, real step_size)
{
    real direction = g;
    if (rule != PLAIN) {
        real v = *velocity * momentum + g;
        *velocity = v;
        direction = rule == NESTEROV ? v * momentum + g : v;
    }
    *parameter -= direction * step_size;
}
