// The rules that kernels.cu and persistent.cu share. Their sources are read behind this text.

typedef REAL real;
typedef long long int64;

// The rules of nn/activations.py, numbered as in cuda_rules.py.
#define IDENTITY 0
#define RELU 1
#define LEAKY_RELU 2
#define TANH 3
#define SIGMOID 4

// The rules of SGD.
#define PLAIN 0
#define MOMENTUM 1
#define NESTEROV 2

// h(s). NaN stays NaN, as with NumPy, so that a training that diverged is found out.
__device__ real activate(real s, int rule, real slope)
{
    switch (rule) {
    case RELU: return s <= (real)0 ? (real)0 : s;
    case LEAKY_RELU: return s > (real)0 ? s : slope * s;
    case TANH: return tanh(s);
    case SIGMOID: return (tanh(s * (real)0.5) + (real)1) * (real)0.5;
    default: return s;
    }
}

// h'(s) from a = h(s).
__device__ real derivative(real a, int rule, real slope)
{
    switch (rule) {
    case RELU: return a > (real)0 ? (real)1 : (real)0;
    case LEAKY_RELU: return a > (real)0 ? (real)1 : slope;
    case TANH: return (real)1 - a * a;
    case SIGMOID: return a * ((real)1 - a);
    default: return (real)1;
    }
}

// Loss, hit or miss, and output error of one sample, which takes the place of its logits s.
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

// The gradient g of the weight w with the penalty's share.
__device__ real add_penalty(real g, real w, real l2, real l1)
{
    g += w * l2;
    g += l1 * (real)((w > (real)0) - (w < (real)0));
    return g;
}

// One parameter's step of SGD with the gradient g; plain SGD has no velocity.
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
