// Many training steps of one or several networks with one to three hidden layers in one launch. plan.py defines the
// sizes (-D) and puts FORWARD1, DERIVATIVE1, ..., the expressions of the activations, before this source. With OPTIMIZER
// NONE, networks are evaluated: a turn ends with the output errors, which tell all blocks that it has ended.
//
// A network has one or several REPLICAS, each with all parameters and a part of the samples of a batch. A replica has
// BLOCKS blocks. A block owns UNITSl units of each hidden layer l, and a share of the replica's samples:
//
//   1. s1 and a1 of its units. Their columns of W1 stay in registers, with the optimizer's state (or that is in shared
//      memory). Rows of samples come by asynchronous copies, 32 at a time, as bf16: pixels are exact, float32 samples
//      are the sum of three.
//   2. Each further hidden layer. A block has one of ROWSl x (BLOCKS / ROWSl) parts of W_l in shared memory. It reads
//      the activations of the part's rows and sends partial sums of s_l to the owners of the units. (With a part of
//      the rows or of the columns only, the partial sums would be BLOCKS times as many as the activations.)
//   3. The outputs. Partial sums from the own units of the last hidden layer go to the owners of the samples, who
//      compute losses and output errors and send the errors to all blocks.
//   4. The same ways back: error terms of the own units of the last hidden layer, of those below by partial sums;
//      gradients and updates where the parameters are. Replicas send each other all gradients first, and each sums
//      them in the same order, so that their parameters stay the same, bit for bit.
//
// Products are by tensor cores: a float32 is the sum of three bf16 numbers, and of the products of parts those that
// matter are summed in float32. The sums of the outputs, which are few, are plain float32.
//
// Blocks exchange numbers through global memory. A number and a tag, the number of the turn (a step, or a pass of it),
// are one 64-bit word, and a reader loads it until the tag is right: there are no fences and no barriers between
// blocks, but all blocks have to be resident. Why no word is overwritten before its readers have it:
//
//   - Call activations, partial sums of s and parts of the outputs forward words; output errors, error terms and their
//     partial sums backward words. A block has its phases in the order above, and between the reading of words and the
//     sending of those of a later phase a barrier, or the sending thread has read all of its own.
//   - A block sends forward words of turn t + 1 when it has the output errors of all samples of turn t. The owner of a
//     sample sends them when it has parts of the outputs from every block; and a block has sent these for all samples
//     only when it has read all other forward words of turn t.
//   - A block sends backward words of turn t + 1 when it has output errors of turn t + 1 (or parts of the outputs from
//     every block, if they are these errors). Parts of the outputs of turn t + 1 are sent by a block that has read all
//     backward words of turn t.
//
//   - Between replicas only gradients are sent, by each thread to those of the same number. They have two places, for
//     even and odd steps: a thread sends those of step t + 2 when it has received those of step t + 1, which the others
//     have sent after they had received those of step t.
//
// For this, all blocks send parts of the outputs, and the owners output errors, for all samples of a full batch, also
// where a short last batch has none. `exchange` is zero at the launch, and tags begin with 1. That a load is complete
// before what depends on it is sent is how hardware works; PTX's memory model has no formal chain of releases here.
//
// No sum depends on the order in which threads run, and a step depends on parameters, state and batch only: the result
// is the same, bit for bit, for any division of an epoch into launches.

#ifdef GPUMLP_HOST  // on a CPU, in tests
#include "cuda_emulator.h"
#endif

typedef float real;
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

struct Network {
    const u16* images;            // (rows, PLANES, INPUTS rounded up to 16) bf16; columns beyond INPUTS are 0
    const i64* order;             // rows of an epoch
    const void* targets;          // i64 class numbers, or float (samples, OUTPUTS)
    const float* sample_weights;  // or null
    float* parameters;
    float* buffers[2];  // velocity; or mean, mean_square
    float* losses;
    void* scores;
    const float* factors;  // (steps, FACTORS)
    float2* exchange;
    double* squares;  // a number for each block, to which its squared weights before each step are added; used if SQUARES
    i64 weight_offset[4], bias_offset[4];  // of each dense layer in the flat buffers
    i64 start, stop;                       // samples of the epoch
    i64 steps_taken;                       // before this launch
    u64 seed;                              // of the dropout masks
    float scale;                           // of the inputs
    float momentum, beta1, one_minus_beta1, beta2, one_minus_beta2, l2, l1, label_smoothing;
    u32 dropout_threshold[4];
    float dropout_scale[4];
    int dropout_layer[4];
};

#define INLINE __device__ __forceinline__
#define UNROLLED _Pragma("unroll")  // arrays that are indexed in such loops are registers
#define ROLLED _Pragma("unroll 1")

#define SOFTMAX 0
#define LOGISTIC 1
#define SQUARED 2
#define POISSON 3
#define PLAIN 0
#define MOMENTUM 1
#define NESTEROV 2
#define ADAMW 4
#define NONE 5

constexpr __device__ int up(int number, int multiple) { return (number + multiple - 1) / multiple * multiple; }
constexpr __device__ int ceil_div(int a, int b) { return (a + b - 1) / b; }
constexpr __device__ int larger(int a, int b) { return a > b ? a : b; }
constexpr __device__ int smaller(int a, int b) { return a < b ? a : b; }
constexpr __device__ int power_of_two(int least, int most)
{
    int p = 1;
    while (p < least && p < most) p *= 2;
    return p;
}

constexpr int LAYERS = HIDDEN2 == 0 ? 1 : HIDDEN3 == 0 ? 2 : 3;  // hidden ones
constexpr int THREADS = 32 * WARPS;
constexpr bool TRAINING = OPTIMIZER != NONE;
constexpr int STATES = OPTIMIZER == PLAIN || !TRAINING ? 0 : OPTIMIZER <= NESTEROV ? 1 : 2;
constexpr int STATE_ROWS = STATES == 0 ? 1 : STATES;
constexpr int FACTORS = !TRAINING ? 0 : OPTIMIZER <= NESTEROV ? 1 : OPTIMIZER == ADAMW ? 3 : 2;

// Samples. A turn is a pass of a step.
constexpr int CHUNKS = ceil_div(ceil_div(BATCH, 32), REPLICAS) / PASSES;  // of 32 samples, in a turn of a replica
constexpr int SAMPLES = 32 * CHUNKS;                                      // of a turn, with padding
constexpr int TURN = smaller(BATCH, SAMPLES);                             // samples of a full turn
constexpr int OWNED = ceil_div(TURN, BLOCKS);                             // samples of a block
// Chunks read in a turn; the backward pass reads those again that have been overwritten
constexpr int LOADS = TRAINING && CHUNKS > SLOTS ? 2 * CHUNKS - SLOTS : CHUNKS;
constexpr int SAMPLE_STRIDE = SAMPLES + 4;                                // of arrays (unit, sample)

// The first layer. Warps divide the tiles of 16 inputs by WARPS_K and those of 8 units by WARPS_N.
constexpr int K16 = ceil_div(INPUTS, 16);
constexpr int ROW = 16 * K16;
constexpr int ROW_BYTES = 2 * PLANES * ROW + 16;  // of a row's planes; an odd multiple of 16, for ldmatrix
constexpr int WARPS_N = WARPS / WARPS_K;
constexpr int TILES_K = ceil_div(K16, WARPS_K);
constexpr int UNIT_TILES = UNITS1 / 8;
constexpr int TILES_N_LEAST = ceil_div(UNIT_TILES, WARPS_N);
constexpr int TILES_N = TILES_N_LEAST == 1 ? 1 : up(TILES_N_LEAST, 2);
constexpr int PAIRS = TILES_N == 1 ? 1 : TILES_N / 2;  // of tiles, in the backward product
constexpr int SUM_STRIDE = UNITS1 + (UNITS1 % 16 == 0 ? 8 : 0);
constexpr int WEIGHTS = TILES_K * TILES_N * 4;  // of a thread

// Own units of all layers lie one after another.
constexpr int UNITS = UNITS1 + UNITS2 + UNITS3;
constexpr __device__ int width(int layer) { return layer == 1 ? HIDDEN1 : layer == 2 ? HIDDEN2 : HIDDEN3; }
constexpr __device__ int units(int layer) { return layer == 1 ? UNITS1 : layer == 2 ? UNITS2 : UNITS3; }
constexpr __device__ int first_of(int layer) { return layer == 1 ? 0 : layer == 2 ? UNITS1 : UNITS1 + UNITS2; }
constexpr int LAST_UNITS = units(LAYERS);

// Outputs.
constexpr int OUT2 = up(OUTPUTS, 2), OUT4 = up(OUTPUTS, 4);
constexpr int ERROR_STRIDE = OUT4 + (OUT4 % 8 == 0 ? 4 : 0);
constexpr int LANES = power_of_two(OUT2, 32);          // of a sample, for its loss
constexpr int EACH = ceil_div(OUT2, LANES);            // outputs of a lane
constexpr int GROUP = OUTPUTS <= 8 ? 8 : 16;           // outputs that are summed over lanes at a time
constexpr int VALUES = power_of_two(OUTPUTS + 1, 16);  // gradients of a unit, of its weights to them and its bias
// Own units of a warp that are summed over lanes at once
constexpr int TOGETHER = OUTPUTS < VALUES ? larger(1, smaller(smaller(16 / VALUES, 4), LAST_UNITS / WARPS)) : 1;

// Small parameters: the own rows of the last weights (stride OUT4), biases of own units, biases of the outputs.
constexpr int BIASES = LAST_UNITS * OUT4, OUTPUT_BIASES = BIASES + UNITS, SMALL = OUTPUT_BIASES + OUTPUTS;

// The part of the weights of a middle layer (2, 3) that a block has, and where its arrays lie in Shared::middle.
template <int LAYER> struct Middle {
    static constexpr int ROWS = LAYER == 2 ? ROWS2 : ROWS3, COLUMNS = BLOCKS / ROWS;
    static constexpr int BELOW = width(LAYER - 1), WIDTH = width(LAYER);
    static constexpr int HEIGHT = up(ceil_div(BELOW, ROWS), 16), ACROSS = up(ceil_div(WIDTH, COLUMNS), 16);
    static constexpr int STRIDE = ACROSS + 4, SIZE = HEIGHT * STRIDE;
    static constexpr int BEGIN = Middle<LAYER - 1>::END;
    static constexpr int STATE = BEGIN + SIZE, INPUT = STATE + STATES * SIZE;
    static constexpr int END = INPUT + HEIGHT * SAMPLE_STRIDE;
};
template <> struct Middle<1> {
    static constexpr int END = 0, ACROSS = 0;
};
constexpr int MIDDLE = Middle<LAYERS>::END;
constexpr int ERRORS_ACROSS =
    LAYERS == 1 ? 0 : larger(Middle<LAYERS>::ACROSS, Middle<LAYERS == 3 ? 2 : LAYERS>::ACROSS);

// Where words lie in `exchange`: parts of the outputs, (owner, from, sample, output); output errors, (sample, output);
// and those of each middle layer.
constexpr int OUTPUT_ERRORS = BLOCKS * BLOCKS * OWNED * OUT2;
template <int LAYER> struct Words {
    static constexpr int BELOW = up(width(LAYER - 1), 8), WIDTH = up(width(LAYER), 8);
    static constexpr int ACTIVATIONS = Words<LAYER - 1>::END;                       // (unit below, sample)
    static constexpr int FORWARD = ACTIVATIONS + SAMPLES * BELOW;                   // (row part, sample, unit)
    static constexpr int ERRORS = FORWARD + Middle<LAYER>::ROWS * SAMPLES * WIDTH;  // (unit, sample)
    static constexpr int BACKWARD = ERRORS + SAMPLES * WIDTH;                       // (column part, sample, unit below)
    static constexpr int END = BACKWARD + Middle<LAYER>::COLUMNS * SAMPLES * BELOW;
};
template <> struct Words<1> {
    static constexpr int END = OUTPUT_ERRORS + SAMPLES * OUT2, WIDTH = 0, ERRORS = 0;
};

// The gradients that replicas send: words of three numbers and a tag. A block's words are those of its small
// parameters, of the first weights, and of middle weights.
constexpr int SMALL_WORDS = ceil_div(SMALL, 3), FIRST_WORDS = ceil_div(WEIGHTS, 3);  // the latter of a thread
constexpr bool SUMMED = TRAINING && REPLICAS > 1;
constexpr int GRADIENT_PAIRS = SUMMED ? 2 * REPLICAS * BLOCKS * GRADIENT_WORDS * 2 : 0;  // they begin `exchange`

struct Shared {
    alignas(128) u8 x[SLOTS][32][ROW_BYTES];
    union {
        alignas(16) float sums[2][WARPS_K][WARPS_K > 1 ? 32 : 1][SUM_STRIDE];  // of the first layer, of each warp
        float errors_across[larger(ERRORS_ACROSS * SAMPLE_STRIDE, 1)];  // error terms of the columns of middle weights
    };
    alignas(16) float unit[UNITS][SAMPLE_STRIDE];    // s of own units, then their error terms
    alignas(16) float error[SAMPLES][ERROR_STRIDE];  // of the outputs
    alignas(16) float small[SMALL];
    float small_gradient[SMALL], small_state[STATE_ROWS][SMALL];
    alignas(16) float middle[MIDDLE + 4];
    float state[STATE_SHARED ? STATE_ROWS : 1][STATE_SHARED ? WEIGHTS : 1][STATE_SHARED ? THREADS : 1];
    u8 kept[UNITS / 8][DROPOUT >> 1 ? SAMPLES : 1];  // a bit for each of 8 units
    alignas(16) float2 exchange[BLOCKS == 1 ? EXCHANGE : 1];
    alignas(8) u64 full[SLOTS];
    float factors[2][3];  // of this step and the next
    Network network;
};
static_assert(sizeof(Shared) <= SHARED_BYTES, "too little shared memory");
static_assert(Words<LAYERS>::END <= EXCHANGE, "too few words to exchange");
static_assert(LAYERS == 1 || THREADS <= 256, "own units of a middle layer need threads that have each a row");

struct Gradients {  // a word
    float value[3];
    u32 tag;
};

// -- What depends on the machine --------------------------------------------------------------------------------------

#ifdef GPUMLP_HOST
__device__ u32 address(const void* p) { return cuda_host::shared_address(p); }
__device__ void mma(float* d, const u32* a, u32 b0, u32 b1) { cuda_host::mma_m16n8k16_bf16(d, a, b0, b1); }
__device__ void load_matrices(u32* r, u32 a) { cuda_host::ldmatrix(r, a, 4, false); }
__device__ void load_transposed(u32* r, u32 a) { cuda_host::ldmatrix(r, a, 4, true); }
__device__ void copy16(u32 to, const void* from) { cuda_host::cp_async(to, from, 16); }
__device__ void copies_arrive(void* barrier) { cuda_host::cp_async_mbarrier_arrive_noinc(address(barrier)); }
__device__ void copy_row(u32 to, const void* from, int bytes, void* barrier)
{
    cuda_host::cp_async_bulk(to, from, bytes, address(barrier));
}
__device__ void expect(void* barrier, u32 bytes) { cuda_host::mbarrier_arrive_expect_tx(address(barrier), bytes); }
__device__ void fence_copies() {}
__device__ void init(void* barrier, int count) { cuda_host::mbarrier_init(address(barrier), count); }
__device__ void wait(void* barrier, u32 parity)
{
    while (!cuda_host::mbarrier_test_wait_parity(address(barrier), parity)) {}
}
__device__ void send(float2* word, float value, u32 tag)
{
    float2 v = {value, __uint_as_float(tag)};
    cuda_host::store(word, &v, 8, 1);
}
__device__ void send(float2* words, float a, float b, u32 tag)
{
    float2 v[2] = {{a, __uint_as_float(tag)}, {b, __uint_as_float(tag)}};
    cuda_host::store(words, v, 8, 2);
}
__device__ void send(float2* words, const Gradients& v) { cuda_host::store(words, &v, 16, 1); }
__device__ Gradients look_gradients(const float2* words)
{
    Gradients r;
    cuda_host::load(words, &r, 16, 1);
    return r;
}
__device__ float2 look(const float2* word)
{
    float2 r;
    cuda_host::load(word, &r, 8, 1);
    return r;
}
__device__ float4 look2(const float2* words)
{
    float4 r;
    cuda_host::load(words, &r, 8, 2);
    return r;
}
__device__ u32 rounded(float low, float high)
{
    return __float2bfloat16_rn(low).x | (u32)__float2bfloat16_rn(high).x << 16;
}
__device__ u64 high_product(u64 a, u64 b) { return (u64)((unsigned __int128)a * b >> 64); }
__device__ u32 opaque(u32 x) { return x; }
#define DYNAMIC_SHARED(type, name) type* name = (type*)cuda_host::dynamic_shared()
#else
__device__ u32 address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
// d (16 x 8) += a (16 x 16) b (16 x 8) of a warp, in float32
INLINE void mma(float* d, const u32* a, u32 b0, u32 b1)
{
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// Four 8 x 8 matrices of bf16; lane i gives the address of row i % 8 of matrix i / 8
INLINE void load_matrices(u32* r, u32 a)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(a)
                 : "memory");
}
INLINE void load_transposed(u32* r, u32 a)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(a)
                 : "memory");
}
__device__ void copy16(u32 to, const void* from)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
__device__ void copies_arrive(void* barrier)
{
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(address(barrier)) : "memory");
}
#if BULK
// A whole row; the barrier counts its bytes
__device__ void copy_row(u32 to, const void* from, int bytes, void* barrier)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(address(barrier))
                 : "memory");
}
__device__ void expect(void* barrier, u32 bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(address(barrier)), "r"(bytes) : "memory");
}
// Between ordinary stores to shared memory and copies of rows to the same place, with a barrier of the block
__device__ void fence_copies() { asm volatile("fence.proxy.async;" ::: "memory"); }
#else
__device__ void copy_row(u32, const void*, int, void*) {}
__device__ void expect(void*, u32) {}
__device__ void fence_copies() {}
#endif
__device__ void init(void* barrier, int count)
{
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(address(barrier)), "r"(count) : "memory");
}
__device__ void wait(void* barrier, u32 parity)
{
    u32 done;
    do
        asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                     : "=r"(done)
                     : "r"(address(barrier)), "r"(parity)
                     : "memory");
    while (!done);
}
// A word is one 64-bit scalar: only of a scalar does the memory model promise that it is seen whole. Of vectors it
// says that their elements are accessed one by one, in any order. Addresses are generic, since the words of one block
// are in shared memory.
INLINE void send(float2* word, float value, u32 tag)
{
    asm volatile("{\n.reg .b64 p;\nmov.b64 p, {%1, %2};\nst.relaxed.gpu.b64 [%0], p;\n}" ::"l"(word), "f"(value),
                 "r"(tag)
                 : "memory");
}
INLINE void send(float2* words, float a, float b, u32 tag)
{
    asm volatile(
        "{\n.reg .b64 p, q;\nmov.b64 p, {%1, %3};\nmov.b64 q, {%2, %3};\nst.relaxed.gpu.v2.b64 [%0], {p, q};\n}" ::"l"(
            words),
        "f"(a), "f"(b), "r"(tag)
        : "memory");
}
INLINE float2 look(const float2* word)
{
    float2 r;
    asm volatile("{\n.reg .b64 p;\nld.relaxed.gpu.b64 p, [%2];\nmov.b64 {%0, %1}, p;\n}"
                 : "=f"(r.x), "=f"(r.y)
                 : "l"(word)
                 : "memory");
    return r;
}
INLINE float4 look2(const float2* words)
{
    float4 r;
    asm volatile(
        "{\n.reg .b64 p, q;\nld.relaxed.gpu.v2.b64 {p, q}, [%4];\nmov.b64 {%0, %1}, p;\nmov.b64 {%2, %3}, q;\n}"
        : "=f"(r.x), "=f"(r.y), "=f"(r.z), "=f"(r.w)
        : "l"(words)
        : "memory");
    return r;
}
// Scalars of 128 bits, which PTX has since CUDA 12.3; they are used only if there are several replicas.
INLINE void send(float2* words, const Gradients& v)
{
    asm volatile("{\n.reg .b64 p, q;\n.reg .b128 w;\nmov.b64 p, {%1, %2};\nmov.b64 q, {%3, %4};\nmov.b128 w, {p, q};\n"
                 "st.relaxed.gpu.b128 [%0], w;\n}" ::"l"(words),
                 "f"(v.value[0]), "f"(v.value[1]), "f"(v.value[2]), "r"(v.tag)
                 : "memory");
}
INLINE Gradients look_gradients(const float2* words)
{
    Gradients r;
    asm volatile("{\n.reg .b64 p, q;\n.reg .b128 w;\nld.relaxed.gpu.b128 w, [%4];\nmov.b128 {p, q}, w;\n"
                 "mov.b64 {%0, %1}, p;\nmov.b64 {%2, %3}, q;\n}"
                 : "=f"(r.value[0]), "=f"(r.value[1]), "=f"(r.value[2]), "=r"(r.tag)
                 : "l"(words)
                 : "memory");
    return r;
}
// Two numbers rounded to bf16, packed
__device__ u32 rounded(float low, float high)
{
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
__device__ u64 high_product(u64 a, u64 b) { return __umul64hi(a, b); }
// x, of which the compiler knows nothing. For a condition on the lane that is the same in each turn of a loop, it may
// make two loops; then lanes come to shuffles apart, and each shuffle takes ten times as long.
INLINE u32 opaque(u32 x)
{
    asm volatile("" : "+r"(x));
    return x;
}
#define DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#endif

// Of this block
INLINE int replica() { return REPLICAS == 1 ? 0 : blockIdx.y / BLOCKS % REPLICAS; }

// Where the samples of a pass begin in a batch
INLINE int first_sample(int pass) { return (replica() * PASSES + pass) * SAMPLES; }

// -- Arithmetic -------------------------------------------------------------------------------------------------------

// The bf16 parts of two numbers, packed. Three parts, cut off, are the whole number; two are rounded.
INLINE void split(float low, float high, u32 (&part)[PARTS])
{
    UNROLLED for (int r = 0; r < PARTS; r++) {
        if (PARTS == 3) {
            part[r] = __byte_perm(__float_as_uint(low), __float_as_uint(high), 0x7632);
        } else {
            part[r] = rounded(low, high);
        }
        low -= __uint_as_float(part[r] << 16);
        high -= __uint_as_float(part[r] & 0xffff0000u);
    }
}

// Half of the values: sums with the lane that differs by DISTANCE, which keeps the other half
template <int COUNT, int DISTANCE> INLINE void halve(float* values, int lane)
{
    const u32 mask = opaque(lane & DISTANCE ? ~0u : 0);
    UNROLLED for (int k = 0; k < COUNT; k++) {
        u32 low = __float_as_uint(values[k]), high = __float_as_uint(values[k + COUNT]), differs = (low ^ high) & mask;
        values[k] = __uint_as_float(low ^ differs) +
                    __shfl_xor_sync(~0u, __uint_as_float(high ^ differs), DISTANCE);
    }
}

// A sum, or what `combine` gives, over groups of `count` lanes, in each of them
template <class T, class Combine> INLINE T lanes_combine(T v, int count, Combine combine)
{
    UNROLLED for (int o = 16; o; o /= 2)
        if (o < count) v = combine(v, __shfl_xor_sync(~0u, v, o));
    return v;
}
INLINE float lanes_sum(float v, int count)
{
    return lanes_combine(v, count, [](float a, float b) { return a + b; });
}

#ifndef FORWARD2
#define FORWARD2 s
#define DERIVATIVE2 1
#endif
#ifndef FORWARD3
#define FORWARD3 s
#define DERIVATIVE3 1
#endif

// h(s) of a hidden layer
template <int LAYER> INLINE real activate(real s)
{
    if constexpr (LAYER == 1) return (real)(FORWARD1);
    if constexpr (LAYER == 2) return (real)(FORWARD2);
    return (real)(FORWARD3);
}

// h'(s), from a = h(s) or from s
template <int LAYER> INLINE real derivative(real a, real s)
{
    (void)a, (void)s;
    if constexpr (LAYER == 1) return (real)(DERIVATIVE1);
    if constexpr (LAYER == 2) return (real)(DERIVATIVE2);
    return (real)(DERIVATIVE3);
}

// Philox 4x64-10, see philox.py: a bit for each of 8 units, whether it is kept.
__device__ u32 kept_units(u64 seed, u64 layer, u64 step, u64 block, u32 threshold)
{
    u64 x[4] = {block, layer, step, 0}, key0 = seed, key1 = 1;
    ROLLED for (int round = 0; round < 10; round++) {
        u64 high0 = high_product(0xD2E7470EE14C6C93ULL, x[0]), low0 = 0xD2E7470EE14C6C93ULL * x[0];
        u64 high1 = high_product(0xCA5A826395121157ULL, x[2]), low1 = 0xCA5A826395121157ULL * x[2];
        x[0] = high1 ^ x[1] ^ key0, x[1] = low1, x[2] = high0 ^ x[3] ^ key1, x[3] = low0;
        key0 += 0x9E3779B97F4A7C15ULL, key1 += 0xBB67AE8584CAA73BULL;
    }
    u32 bits = 0;
    UNROLLED for (int j = 0; j < 8; j++) bits |= (u32)((u32)(x[j / 2] >> j % 2 * 32) >= threshold) << j;
    return bits;
}

// What the update of a step depends on.
struct Rule {
    float momentum, beta1, one_minus_beta1, beta2, one_minus_beta2, l2, l1, step_size, epsilon, decay;

    // factors: of the step
    INLINE Rule(const Network& n, const float* factors)
        : momentum(n.momentum), beta1(n.beta1), one_minus_beta1(n.one_minus_beta1), beta2(n.beta2),
          one_minus_beta2(n.one_minus_beta2), l2(n.l2), l1(n.l1), step_size(factors[0]),
          epsilon(FACTORS > 1 ? factors[1] : 0), decay(FACTORS > 2 ? factors[2] : 0)
    {
    }

    // One parameter with its gradient g and its state, as the optimizers of nn/optimizers.py do it
    INLINE void update(float& p, float g, float* first, float* second, bool weight) const
    {
        if (weight) {
            g += p * l2;
            if (l1 != 0) g += l1 * (float)((p > 0) - (p < 0));
            if (OPTIMIZER == ADAMW) p -= p * decay;
        }
        if constexpr (OPTIMIZER == PLAIN) {
            p -= g * step_size;
        } else if constexpr (OPTIMIZER <= NESTEROV) {
            float v = *first * momentum + g;
            *first = v;
            p -= (OPTIMIZER == NESTEROV ? v * momentum + g : v) * step_size;
        } else {
            float m = *first * beta1 + g * one_minus_beta1, v = *second * beta2 + g * g * one_minus_beta2;
            *first = m, *second = v;
            p -= m / (sqrtf(v) + epsilon) * step_size;
        }
    }
};

// Tensor cores cut sums off, so where a product takes six of theirs, they are summed apart, the largest last, and
// added.
INLINE void add(float* d, const float* other)
{
    UNROLLED for (int k = 0; k < 4; k++) d[k] += other[k];
}

// A pair of neighbours in the summed dimension k of a matrix in shared memory: (k, m) if K_FIRST, else (m, k).
template <bool K_FIRST> INLINE float2 pair_of(const float* matrix, int stride, int m, int k)
{
    if (K_FIRST) return make_float2(matrix[k * stride + m], matrix[(k + 1) * stride + m]);
    return *(const float2*)&matrix[m * stride + k];
}

// d[i][j] (16 x 8) += a b for M tiles of 16 rows of a, N of 8 columns of b and k summed, from float32 in shared memory
template <int M, int N, bool A_K_FIRST, bool B_K_FIRST>
INLINE void multiply(float (&d)[M][N][4], const float* a, int a_stride, const float* b, int b_stride, int k, int lane)
{
    int g = lane / 4, t = lane % 4;
    ROLLED for (int k0 = 0; k0 < k; k0 += 16) {
        u32 left[M][PARTS][4];
        UNROLLED for (int i = 0; i < M; i++)
            UNROLLED for (int q = 0; q < 4; q++) {
                float2 two = pair_of<A_K_FIRST>(a, a_stride, 16 * i + g + q % 2 * 8, k0 + 2 * t + q / 2 * 8);
                u32 part[PARTS];
                split(two.x, two.y, part);
                UNROLLED for (int p = 0; p < PARTS; p++) left[i][p][q] = part[p];
            }
        UNROLLED for (int j = 0; j < N; j++) {
            u32 right[2][PARTS];
            UNROLLED for (int h = 0; h < 2; h++) {
                float2 two = pair_of<B_K_FIRST>(b, b_stride, 8 * j + g, k0 + 2 * t + 8 * h);
                split(two.x, two.y, right[h]);
            }
            float sum[M][4] = {};
            UNROLLED for (int order = PARTS - 1; order >= 0; order--)
                UNROLLED for (int p = 0; p <= order; p++)
                    UNROLLED for (int i = 0; i < M; i++)
                        mma(sum[i], left[i][p], right[0][order - p], right[1][order - p]);
            UNROLLED for (int i = 0; i < M; i++) add(d[i][j], sum[i]);
        }
    }
}

// How many tiles a warp multiplies at a time of `tiles`, where there are `others` in the other dimension: at most
// `most`, a power of two that divides them, and so few that every warp has some.
constexpr __device__ int tiles_at_once(int tiles, int others, int most)
{
    int n = most;
    while (n > 1 && (tiles % n != 0 || tiles / n * others < WARPS)) n /= 2;
    return n;
}

INLINE bool arrived(const float2& word, u32 tag) { return __float_as_uint(word.y) == tag; }
INLINE bool arrived(const float4& two, u32 tag)
{
    return __float_as_uint(two.y) == tag && __float_as_uint(two.w) == tag;
}
INLINE void look(const float2* place, float2& word) { word = look(place); }
INLINE void look(const float2* place, float4& two) { two = look2(place); }
INLINE bool arrived(const Gradients& three, u32 tag) { return three.tag == tag; }
INLINE void look(const float2* place, Gradients& three) { three = look_gradients(place); }

// Wait for COUNT words (Word: float2 or Gradients), or pairs of words (float4), of a thread, at most MOST at a time,
// which are looked at together: where(k) is the place of number k, or null if OPTIONAL, and put(k, word) takes it.
// Without OPTIONAL the compiler keeps all loads in flight.
template <int COUNT, int MOST, class Word, bool OPTIONAL = true, class Where, class Put>
INLINE void receive(u32 tag, Where where, Put put)
{
    constexpr int AT_ONCE = smaller(COUNT, MOST);
    UNROLLED for (int first = 0; first < COUNT; first += AT_ONCE) {
        Word word[AT_ONCE];
        bool here;
        do {
            here = true;
            UNROLLED for (int k = 0; k < AT_ONCE; k++) {
                const float2* place = first + k < COUNT ? where(first + k) : nullptr;
                word[k] = Word{};
                if (OPTIONAL ? place != nullptr : first + k < COUNT) look(place, word[k]);
            }
            UNROLLED for (int k = 0; k < AT_ONCE; k++)
                here = here && (first + k >= COUNT || (OPTIONAL && !where(first + k)) || arrived(word[k], tag));
        } while (!here);
        UNROLLED for (int k = 0; k < AT_ONCE; k++)
            if (first + k < COUNT) put(first + k, word[k]);
    }
}

// The gradients of a middle layer's weights: COUNT tasks of warps, HIGH x WIDE tiles each, and their words.
template <int LAYER> struct Tasks {
    static constexpr int ROWS = Middle<LAYER>::HEIGHT / 16, COLUMNS = Middle<LAYER>::ACROSS / 8;
    static constexpr int HIGH = tiles_at_once(ROWS, COLUMNS, 2), WIDE = tiles_at_once(COLUMNS, ROWS / HIGH, 4);
    static constexpr int ACROSS = COLUMNS / WIDE, COUNT = ROWS / HIGH * ACROSS;
    static constexpr int NUMBERS = 4 * HIGH * WIDE;  // of a thread
    static constexpr int BEGIN = Tasks<LAYER - 1>::END, WORDS = ceil_div(NUMBERS, 3);
    static constexpr int END = BEGIN + 32 * WORDS * COUNT;
};
template <> struct Tasks<1> {
    static constexpr int END = SMALL_WORDS + THREADS * FIRST_WORDS;
};
static_assert(!SUMMED || Tasks<LAYERS>::END <= GRADIENT_WORDS, "too few words for gradients");

// -- A thread's part of the training ----------------------------------------------------------------------------------

struct Worker {
    Shared& s;
    const Network& network;
    float2* words;
    float2* gradients;  // this block's in the first replica, of even steps
    const int lane, warp, g, t, me;
    float weight[TILES_K][TILES_N][4];  // W1 as b of mma: inputs 2t + e % 2 + e / 2 * 8 of a tile, unit g
    float state[STATE_SHARED ? 1 : STATE_ROWS][TILES_K][TILES_N][4];
    float gradient[TILES_K][PAIRS][2][4];
    int step = 0, pass = 0;
    int batch, rest;  // samples of the batch; those of this turn, 0 or less if there are none
    u32 tag;          // of the turn's words
    float squares = 0;  // of the weights it has updated

    INLINE Worker(Shared& shared, int thread, int block)
        : s(shared), network(shared.network),
          words(BLOCKS == 1 ? shared.exchange : shared.network.exchange + GRADIENT_PAIRS + (i64)replica() * EXCHANGE),
          gradients(shared.network.exchange + (i64)block * GRADIENT_WORDS * 2),
          lane(thread % 32), warp(thread / 32), g(thread % 32 / 4), t(thread % 4), me(block)
    {
    }

    INLINE void begin_turn(int turn)
    {
        batch = (int)min((i64)BATCH, network.stop - network.start - (i64)step * BATCH), rest = batch - turn_row();
        tag = turn + 1;
        if (pass == 0 && thread() < FACTORS)
            s.factors[step & 1][thread()] = network.factors[(i64)step * FACTORS + thread()];
    }

    __device__ void end_turn()
    {
        if (++pass == PASSES) pass = 0, step++;
    }

    __device__ int thread() const { return warp * 32 + lane; }
    // Of the turn's first sample in the batch
    __device__ int turn_row() const { return first_sample(pass); }
    __device__ i64 turn_sample() const { return network.start + (i64)step * BATCH + turn_row(); }  // in the epoch
    __device__ u64 steps_taken() const { return network.steps_taken + step; }
    __device__ Rule rule() const { return Rule(network, s.factors[step & 1]); }
    __device__ int tile_k(int i) const { return i * WARPS_K + warp % WARPS_K; }
    __device__ int tile_n(int j) const { return warp / WARPS_K * TILES_N + j; }

    // The state of a weight
    INLINE float* state_of(int number, int i, int j, int e)
    {
        if constexpr (STATES == 0) return nullptr;
        if (number >= STATES) return nullptr;
        if constexpr (STATE_SHARED) return &s.state[number][(i * TILES_N + j) * 4 + e][thread()];
        else return &state[number][i][j][e];
    }

    // Read parameters and their state from the flat buffers, or write them there
    template <bool WRITE> INLINE void move(float* flat, float& value)
    {
        if (WRITE) *flat = value;
        else value = *flat;
    }
    template <bool WRITE> __device__ void move_parameter(i64 place, float& value, float* first, float* second)
    {
        move<WRITE>(network.parameters + place, value);
        if constexpr (STATES > 0) move<WRITE>(network.buffers[0] + place, *first);
        if constexpr (STATES > 1) move<WRITE>(network.buffers[1] + place, *second);
    }
    template <bool WRITE> INLINE void move_first_weights()
    {
        UNROLLED for (int i = 0; i < TILES_K; i++)
            UNROLLED for (int j = 0; j < TILES_N; j++)
                UNROLLED for (int e = 0; e < 4; e++) {
                    int input = tile_k(i) * 16 + e / 2 * 8 + 2 * t + e % 2, own = tile_n(j) * 8 + g,
                        unit = me * UNITS1 + own;
                    bool there = tile_k(i) < K16 && input < INPUTS && own < UNITS1 && unit < HIDDEN1;
                    if (!WRITE) {
                        weight[i][j][e] = 0;
                        UNROLLED for (int n = 0; n < STATES; n++) *state_of(n, i, j, e) = 0;
                    }
                    if (there)
                        move_parameter<WRITE>(network.weight_offset[0] + (i64)input * HIDDEN1 + unit, weight[i][j][e],
                                              state_of(0, i, j, e), state_of(1, i, j, e));
                }
    }
    template <bool WRITE> __device__ void move_small()
    {
        auto move_one = [&](int k, i64 place) {
            move_parameter<WRITE>(place, s.small[k], &s.small_state[0][k], &s.small_state[STATES > 1][k]);
        };
        for (int k = thread(); k < LAST_UNITS * OUTPUTS; k += THREADS) {
            int own = k / OUTPUTS, output = k % OUTPUTS, unit = me * LAST_UNITS + own;
            if (unit < width(LAYERS))
                move_one(own * OUT4 + output, network.weight_offset[LAYERS] + (i64)unit * OUTPUTS + output);
        }
        for (int k = thread(); k < UNITS; k += THREADS) {
            int layer = LAYERS > 1 && k >= first_of(2) ? LAYERS > 2 && k >= first_of(3) ? 3 : 2 : 1;
            int unit = me * units(layer) + k - first_of(layer);
            if (unit < width(layer)) move_one(BIASES + k, network.bias_offset[layer - 1] + unit);
        }
        if (!WRITE || me == 0)  // each block has the biases of the outputs
            for (int k = thread(); k < OUTPUTS; k += THREADS)
                move_one(OUTPUT_BIASES + k, network.bias_offset[LAYERS] + k);
    }
    template <int LAYER, bool WRITE> __device__ void move_middle()
    {
        typedef Middle<LAYER> M;
        for (int k = thread(); k < M::HEIGHT * M::ACROSS; k += THREADS) {
            int row = k / M::ACROSS, column = k % M::ACROSS, at = row * M::STRIDE + column;
            int below = me / M::COLUMNS * M::HEIGHT + row, unit = me % M::COLUMNS * M::ACROSS + column;
            if (below < M::BELOW && unit < M::WIDTH)
                move_parameter<WRITE>(network.weight_offset[LAYER - 1] + (i64)below * M::WIDTH + unit,
                                      s.middle[M::BEGIN + at], &s.middle[M::STATE + at],
                                      &s.middle[M::STATE + (STATES > 1) * M::SIZE + at]);
        }
    }
    template <bool WRITE> INLINE void move_all()
    {
        move_first_weights<WRITE>();
        move_small<WRITE>();
        if constexpr (LAYERS > 1) move_middle<2, WRITE>();
        if constexpr (LAYERS > 2) move_middle<3, WRITE>();
    }

    // -- Dropout

    // Which own units of hidden layers are kept in this turn
    template <int LAYER> __device__ void draw_units()
    {
        if constexpr (DROPOUT >> LAYER & 1) {
            constexpr int BLOCKS_OF_ROW = ceil_div(width(LAYER), 8);
            for (int k = thread(); k < units(LAYER) / 8 * SAMPLES; k += THREADS) {
                int tile = k / SAMPLES, b = k % SAMPLES, block = me * units(LAYER) / 8 + tile;
                u32 bits =
                    block >= BLOCKS_OF_ROW
                        ? 0
                        : kept_units(network.seed, network.dropout_layer[LAYER], steps_taken(),
                                     (u64)(turn_row() + b) * BLOCKS_OF_ROW + block, network.dropout_threshold[LAYER]);
                s.kept[first_of(LAYER) / 8 + tile][b] = (u8)bits;
            }
        }
        if constexpr (LAYER < LAYERS) draw_units<LAYER + 1>();
    }

    // 0 or 1 / (1 - p) for an own unit; 1 without dropout
    template <int LAYER> INLINE float kept(int own, int b) const
    {
        if constexpr ((DROPOUT >> LAYER & 1) == 0) return 1;
        else return s.kept[(first_of(LAYER) + own) / 8][b] >> own % 8 & 1 ? network.dropout_scale[LAYER] : 0.f;
    }

    // Set the dropped inputs of a chunk to 0
    __device__ void drop_inputs(int slot, int chunk)
    {
        constexpr int BLOCKS_OF_ROW = ceil_div(INPUTS, 8);
        for (int k = thread(); k < 32 * BLOCKS_OF_ROW; k += THREADS) {
            int row = k / BLOCKS_OF_ROW, block = k % BLOCKS_OF_ROW;
            u32 bits =
                kept_units(network.seed, network.dropout_layer[0], steps_taken(),
                           (u64)(turn_row() + chunk * 32 + row) * BLOCKS_OF_ROW + block, network.dropout_threshold[0]);
            UNROLLED for (int p = 0; p < PLANES; p++)
                UNROLLED for (int j = 0; j < 8; j++)
                    if (!(bits >> j & 1)) ((u16*)s.x[slot][row])[p * ROW + block * 8 + j] = 0;
        }
        fence_copies();
        __syncthreads();
    }

    __device__ float input_scale() const
    {
        return DROPOUT & 1 ? network.scale * network.dropout_scale[0] : network.scale;
    }

    // -- Forward

    // Whether an own unit and a sample are there, not padding
    template <int LAYER> INLINE bool exists(int own, int b) const
    {
        return me * units(LAYER) + own < width(LAYER) && b < rest;
    }

    // The output of an own unit after dropout, from s
    template <int LAYER> INLINE float output_of(float sum, int own, int b) const
    {
        return exists<LAYER>(own, b) ? activate<LAYER>(sum) * kept<LAYER>(own, b) : 0.f;
    }

    // The error term of an own unit, dC/ds, from s and dC/d(its output)
    template <int LAYER> INLINE float error_of(float sum, float slope, int own, int b) const
    {
        return exists<LAYER>(own, b) ? slope * derivative<LAYER>(activate<LAYER>(sum), sum) * kept<LAYER>(own, b) : 0.f;
    }

    INLINE void split_weight(int i, int j, u32 (&part)[2][PARTS])
    {
        UNROLLED for (int h = 0; h < 2; h++) split(weight[i][j][2 * h], weight[i][j][2 * h + 1], part[h]);
    }

    // Sums over the warp's inputs for a chunk and its units, to shared memory: to Shared::unit where no other warp has
    // a part of them. Without branches inside, so that loads of the next tile overlap: a warp without a last tile has
    // zeros as weights. part: of the weights, if KEEP_PARTS
    INLINE void first_products(int slot, int chunk, u32 (&part)[KEEP_PARTS ? TILES_K : 1][TILES_N][2][PARTS])
    {
        constexpr int AT_ONCE = TILES_N == 1 ? 1 : 2;
        constexpr int CHAINS = TILES_N == 1 ? 2 : 1;  // two sums by turns depend less on each other
        u32 row = address(&s.x[slot][lane & 15][(lane >> 4) * 16]);
        UNROLLED for (int first = 0; first < TILES_N; first += AT_ONCE) {
            float sum[CHAINS][AT_ONCE][2][4] = {};
            UNROLLED for (int i = 0; i < TILES_K; i++) {
                u32 x = row + min(tile_k(i), K16 - 1) * 32;
                u32 a[PLANES][2][4];
                UNROLLED for (int p = 0; p < PLANES; p++)
                    UNROLLED for (int m = 0; m < 2; m++) load_matrices(a[p][m], x + 2 * p * ROW + m * 16 * ROW_BYTES);
                UNROLLED for (int j = 0; j < AT_ONCE; j++) {
                    u32(&own)[2][PARTS] = part[KEEP_PARTS ? i : 0][first + j];
                    if (!KEEP_PARTS) split_weight(i, first + j, own);
                    float small[2][4] = {};
                    UNROLLED for (int order = PARTS - 1; order >= 0; order--)
                        UNROLLED for (int p = 0; p < PLANES && p <= order; p++)
                            UNROLLED for (int m = 0; m < 2; m++)
                                mma(PLANES > 1 ? small[m] : sum[i % CHAINS][j][m], a[p][m], own[0][order - p],
                                    own[1][order - p]);
                    if (PLANES > 1) add(sum[i % CHAINS][j][0], small[0]), add(sum[i % CHAINS][j][1], small[1]);
                }
            }
            UNROLLED for (int j = 0; j < AT_ONCE; j++) {
                if (tile_n(first + j) >= UNIT_TILES) continue;
                int own = tile_n(first + j) * 8 + 2 * t;
                UNROLLED for (int m = 0; m < 2; m++)
                    UNROLLED for (int h = 0; h < 2; h++) {
                        int sample = m * 16 + h * 8 + g;
                        float2 two = make_float2(sum[0][j][m][2 * h], sum[0][j][m][2 * h + 1]);
                        if (CHAINS == 2)
                            two.x += sum[CHAINS - 1][j][m][2 * h], two.y += sum[CHAINS - 1][j][m][2 * h + 1];
                        if (WARPS_K > 1) *(float2*)&s.sums[chunk & 1][warp % WARPS_K][sample][own] = two;
                        else s.unit[own][chunk * 32 + sample] = two.x, s.unit[own + 1][chunk * 32 + sample] = two.y;
                    }
            }
        }
    }

    // The sum over all inputs of an own unit, from the parts that the warps have left in shared memory
    INLINE float first_sum(int chunk, int own, int b) const
    {
        if (WARPS_K == 1) return s.unit[own][b];
        float sum = 0;
        UNROLLED for (int k = 0; k < WARPS_K; k++) sum += s.sums[chunk & 1][k][b % 32][own];
        return sum;
    }

    // Outputs of own units of a layer for a chunk, from get(own unit, sample), their s without bias; sent to where they
    // are needed. Eight lanes have a sample; lane u of them has units u, u + 8, ...
    template <int LAYER, class Get> INLINE void finish(int chunk, Get get)
    {
        int u = lane % 8;
        ROLLED for (int row = thread() / 8; row < 32; row += THREADS / 8) {
            int b = chunk * 32 + row;
            auto sum = [&](int n) { return get(n * 8 + u, b) + s.small[BIASES + first_of(LAYER) + n * 8 + u]; };
            auto output = [&](int n, float sum) {
                s.unit[first_of(LAYER) + n * 8 + u][b] = sum;
                return output_of<LAYER>(sum, n * 8 + u, b);
            };
            if constexpr (LAYER < LAYERS) {
                ROLLED for (int n = 0; n < units(LAYER) / 8; n++) {
                    float a = output(n, sum(n));
                    int unit = me * units(LAYER) + n * 8 + u;
                    if (unit < up(width(LAYER), 8))
                        send(words + Words<LAYER + 1>::ACTIVATIONS + (i64)unit * SAMPLES + b, a, tag);
                }
            } else {
                send_outputs(0, b, sum, output);
                auto same = [&](int n) { return s.unit[first_of(LAYER) + n * 8 + u][b]; };
                ROLLED for (int first = GROUP; first < OUTPUTS; first += GROUP) send_outputs(first, b, same, output);
            }
        }
    }

    // This block's part of outputs first, ..., first + GROUP - 1 of a sample, to its owner, from the units'
    // output(n, sum(n)). Several sums are read at once, since each takes long.
    template <class Sum, class Output> INLINE void send_outputs(int first, int b, Sum sum, Output output)
    {
        constexpr int TILES = LAST_UNITS / 8, AT_ONCE = smaller(TILES, 4);
        float z[GROUP] = {};
        ROLLED for (int n = 0; n < TILES; n += AT_ONCE) {
            float sums[AT_ONCE];
            UNROLLED for (int j = 0; j < AT_ONCE; j++) sums[j] = n + j < TILES ? sum(n + j) : 0.f;
            UNROLLED for (int j = 0; j < AT_ONCE; j++) {
                if (n + j >= TILES) continue;
                float a = output(n + j, sums[j]);
                UNROLLED for (int k = 0; k < GROUP; k += 4)
                    if (first + k < OUT4) {
                        float4 w = *(float4*)&s.small[((n + j) * 8 + lane % 8) * OUT4 + first + k];
                        z[k] += a * w.x, z[k + 1] += a * w.y, z[k + 2] += a * w.z, z[k + 3] += a * w.w;
                    }
            }
        }
        halve<GROUP / 2, 4>(z, lane);
        halve<GROUP / 4, 2>(z, lane);
        halve<GROUP / 8, 1>(z, lane);
        int column = first + lane % 8 * (GROUP / 8);
        if (b >= TURN || column >= OUT2) return;
        float2* place = words + ((b / OWNED * BLOCKS + me) * OWNED + b % OWNED) * OUT2 + column;
        if (GROUP == 16) send(place, z[0], z[GROUP == 16], tag);
        else send(place, z[0], tag);
    }

    // The activations or error terms of COUNT units from `first` on, as (unit, sample), from the words of all units
    // below `limit`
    template <int COUNT> INLINE void receive_units(const float2* from, int first, int limit, float* to)
    {
        constexpr int HALF = SAMPLES / 2;
        receive<ceil_div(COUNT * HALF, THREADS), 8, float4>(
            tag,
            [&](int k) {
                int at = thread() + k * THREADS, unit = first + at / HALF;
                return at < COUNT * HALF && unit < limit ? from + (i64)unit * SAMPLES + at % HALF * 2 : nullptr;
            },
            [&](int k, float4 two) {
                int at = thread() + k * THREADS;
                if (at < COUNT * HALF)
                    *(float2*)&to[at / HALF * SAMPLE_STRIDE + at % HALF * 2] = make_float2(two.x, two.z);
            });
    }

    // Partial sums, a (SAMPLES x k) times b (k x 8 TILES), sent as (sample, column), where columns begin at `first`
    template <int TILES, bool B_K_FIRST>
    INLINE void send_products(const float* a, const float* b, int b_stride, int k, float2* to, int first, int limit)
    {
        constexpr int ROWS = 2 * CHUNKS, M = tiles_at_once(ROWS, TILES, 2), N = tiles_at_once(TILES, ROWS / M, 4);
        ROLLED for (int task = warp; task < TILES / N * (ROWS / M); task += WARPS) {
            int n = task % (TILES / N) * N, m = task / (TILES / N) * M;
            float d[M][N][4] = {};
            multiply<M, N, true, B_K_FIRST>(d, a + m * 16, SAMPLE_STRIDE, b + n * 8 * (B_K_FIRST ? 1 : b_stride),
                                            b_stride, k, lane);
            UNROLLED for (int j = 0; j < N; j++) {
                int column = first + (n + j) * 8 + 2 * t;
                if (column >= limit) continue;
                UNROLLED for (int i = 0; i < M; i++)
                    UNROLLED for (int h = 0; h < 2; h++)
                        send(to + (i64)((m + i) * 16 + h * 8 + g) * limit + column, d[i][j][2 * h], d[i][j][2 * h + 1],
                             tag);
            }
        }
    }

    // For own units n * 8 + lane % 8 of a layer and all samples of a thread: take(unit, sample, sum), with the sum of
    // COUNT parts of a (part, sample, unit) array, in this order. Parts of padding samples are not read: the argument
    // above needs that a block that has sent its parts of all outputs has read these words.
    template <int LAYER, int COUNT, class Take> INLINE void sum_parts(const float2* from, int limit, int n, Take take)
    {
        constexpr int ROUNDS = ceil_div(8 * SAMPLES, THREADS);
        constexpr int AT_ONCE = COUNT >= 16 ? 1 : smaller(ROUNDS, 16 / COUNT);
        int own = n * 8 + lane % 8, unit = me * units(LAYER) + own;
        ROLLED for (int first = 0; first < ROUNDS; first += AT_ONCE) {
            float sum[AT_ONCE] = {};
            auto sample = [&](int round) { return (first + round) * (THREADS / 8) + thread() / 8; };
            receive<COUNT * AT_ONCE, 32, float2>(
                tag,
                [&](int k) {
                    int b = sample(k / COUNT);
                    return unit < limit && b < TURN ? from + ((i64)(k % COUNT) * SAMPLES + b) * limit + unit : nullptr;
                },
                [&](int k, float2 word) { sum[k / COUNT] += word.x; });
            UNROLLED for (int round = 0; round < AT_ONCE; round++)
                if (sample(round) < SAMPLES) take(own, sample(round), sum[round]);
        }
    }

    // A middle layer: partial sums of this block's part of the weights, then the own units
    template <int LAYER> INLINE void middle_forward()
    {
        typedef Middle<LAYER> M;
        typedef Words<LAYER> W;
        int row = me / M::COLUMNS, column = me % M::COLUMNS;
        receive_units<M::HEIGHT>(words + W::ACTIVATIONS, row * M::HEIGHT, W::BELOW, s.middle + M::INPUT);
        __syncthreads();
        send_products<M::ACROSS / 8, true>(s.middle + M::INPUT, s.middle + M::BEGIN, M::STRIDE, M::HEIGHT,
                                           words + W::FORWARD + (i64)row * SAMPLES * W::WIDTH, column * M::ACROSS,
                                           W::WIDTH);
        ROLLED for (int n = 0; n < units(LAYER) / 8; n++)
            sum_parts<LAYER, M::ROWS>(words + W::FORWARD, W::WIDTH, n,
                                      [&](int own, int b, float sum) { s.unit[first_of(LAYER) + own][b] = sum; });
        // The same thread has the same unit and sample there.
        ROLLED for (int c = 0; c < CHUNKS; c++)
            finish<LAYER>(c, [&](int own, int b) { return s.unit[first_of(LAYER) + own][b]; });
    }

    // -- The loss

    INLINE float loss_of(float z, float y, float eps, float& delta) const
    {
        if constexpr (LOSS == LOGISTIC) {
            y = y * (1 - eps) + eps / 2;
            float small = expf(-fabsf(z));
            delta = (z > 0 ? 1.f : small) / (small + 1) - y;
            return log1pf(small) + (z <= 0 ? 0.f : z) - y * z;  // keeps NaN
        } else if constexpr (LOSS == SQUARED) {
            delta = z - y;
            return 0.5f * delta * delta;
        } else {
            float mean = expf(z);
            delta = mean - y;
            return y * (logf(y > 0 ? y : 1.f) - z - 1) + mean;
        }
    }

    // Losses, scores and output errors of the own samples; the errors go to all blocks
    INLINE void output_errors()
    {
        ROLLED for (int first = warp * (32 / LANES); first < OWNED; first += WARPS * (32 / LANES)) {
            int j = first + lane / LANES, b = me * OWNED + j, l = lane % LANES;
            bool mine = j < OWNED && b < TURN, there = mine && b < rest;
            i64 sample = turn_sample() + (there ? b : 0);
            float z[EACH], y[EACH], weight_of_sample = 1;
            int label = 0;
            if (WEIGHTED && there) weight_of_sample = network.sample_weights[sample];
            if constexpr (LOSS == SOFTMAX) label = there ? (int)((const i64*)network.targets)[sample] : 0;
            UNROLLED for (int i = 0; i < EACH; i++) {
                int c = i * LANES + l;
                y[i] = LOSS != SOFTMAX && there && c < OUTPUTS ? ((const float*)network.targets)[sample * OUTPUTS + c]
                                                               : 0.f;
            }
            UNROLLED for (int i = 0; i < EACH; i++) {
                int c = i * LANES + l;
                z[i] = c < OUTPUTS ? s.small[OUTPUT_BIASES + c] : 0.f;
                receive<BLOCKS, 32, float2>(
                    tag,
                    [&](int k) {
                        return mine && c < OUT2 ? words + ((me * BLOCKS + k) * OWNED + j) * OUT2 + c : nullptr;
                    },
                    [&](int k, float2 word) { z[i] += word.x; });
            }
            float loss, eps = network.label_smoothing, share = 1.f / batch;
            // Errors are sent as soon as they are there; other blocks wait for them.
            auto send_error = [&](int i, float delta) {
                int c = i * LANES + l;
                float error = there && c < OUTPUTS ? delta * weight_of_sample : 0.f;
                if (mine && c < OUT2) send(words + OUTPUT_ERRORS + b * OUT2 + c, error, tag);
            };
            if constexpr (LOSS == SOFTMAX) {
                float most = -__uint_as_float(0x7f800000u), total = 0, sum = 0, expected = 0, power[EACH];
                int best = OUTPUTS;
                UNROLLED for (int i = 0; i < EACH; i++)
                    if (i * LANES + l < OUTPUTS) most = fmaxf(most, z[i]);
                most = lanes_combine(most, LANES, [](float a, float b) { return fmaxf(a, b); });
                UNROLLED for (int i = 0; i < EACH; i++) {
                    power[i] = i * LANES + l < OUTPUTS ? expf(z[i] - most) : 0.f;
                    total += power[i];
                }
                total = lanes_sum(total, LANES);
                float divisor = total * batch;
                UNROLLED for (int i = 0; i < EACH; i++) {
                    float delta = power[i] / divisor - (i * LANES + l == label ? (1 - eps) * share : 0.f);
                    send_error(i, eps != 0 ? delta - eps / OUTPUTS * share : delta);
                }
                UNROLLED for (int i = EACH - 1; i >= 0; i--) {
                    int c = i * LANES + l;
                    if (c >= OUTPUTS) continue;
                    if (z[i] == most) best = c;  // of several equal logits, the first is the prediction
                    sum += z[i] - most, expected += c == label ? z[i] - most : 0.f;
                }
                expected = lanes_sum(expected, LANES);
                if (eps != 0) expected = expected * (1 - eps) + lanes_sum(sum, LANES) * (eps / OUTPUTS);
                best = lanes_combine(best, LANES, [](int a, int b) { return min(a, b); });
                loss = logf(total) - expected;
                if (there && opaque(l) == 0) ((bool*)network.scores)[sample] = best == label;
            } else {
                float sum = 0, delta[EACH];
                UNROLLED for (int i = 0; i < EACH; i++) {
                    float each = loss_of(z[i], y[i], eps, delta[i]);
                    if (there && i * LANES + l < OUTPUTS) sum += each;
                    send_error(i, delta[i] * share);
                }
                loss = lanes_sum(sum, LANES);
                UNROLLED for (int i = 0; i < EACH; i++) {
                    i64 at = sample * OUTPUTS + i * LANES + l;
                    if (!there || i * LANES + l >= OUTPUTS) continue;
                    if (LOSS == LOGISTIC) ((bool*)network.scores)[at] = (z[i] > 0) == (y[i] > 0.5f);
                    else ((float*)network.scores)[at] = delta[i];
                }
            }
            if (there && opaque(l) == 0) network.losses[sample] = loss * weight_of_sample;
        }
    }

    // The output errors of all samples, to shared memory
    INLINE void receive_errors()
    {
        constexpr int COUNT = TURN * OUT2 / 2;
        receive<ceil_div(COUNT, THREADS), 8, float4>(
            tag,
            [&](int k) {
                int at = thread() + k * THREADS;
                return at < COUNT ? words + OUTPUT_ERRORS + at * 2 : nullptr;
            },
            [&](int k, float4 two) {
                int at = (thread() + k * THREADS) * 2;
                if (at < COUNT * 2) *(float2*)&s.error[at / OUT2][at % OUT2] = make_float2(two.x, two.z);
            });
    }

    // -- Backward

    INLINE void add_square(float weight)
    {
        if (SQUARES) squares += weight * weight;
    }

    // Add those of all threads to the block's number.
    __device__ void write_squares()
    {
        float sum = lanes_sum(squares, 32);
        if (lane == 0) s.unit[0][warp] = sum;
        __syncthreads();
        if (thread() > 0) return;
        double total = 0;
        for (int w = 0; w < WARPS; w++) total += s.unit[0][w];
        network.squares[me] += total;
    }

    // The gradient of a small parameter, from this pass; in each pass, the same thread has it
    INLINE void add_gradient(int k, float g) { s.small_gradient[k] = PASSES > 1 ? s.small_gradient[k] + g : g; }

    // The place of a word of gradients that a replica sends in this step
    INLINE float2* gradients_of(int from, int word) const
    {
        return gradients + (((step & 1) * REPLICAS + from) * BLOCKS * GRADIENT_WORDS + word) * 2;
    }

    // Send COUNT gradients of this thread, as words first, first + stride, ...
    template <int COUNT> INLINE void send_gradients(const float* own, int first, int stride)
    {
        UNROLLED for (int k = 0; k < COUNT; k += 3) {
            Gradients three = {{}, tag};
            UNROLLED for (int j = 0; j < 3; j++)
                if (k + j < COUNT) three.value[j] = own[k + j];
            send(gradients_of(replica(), first + k / 3 * stride), three);
        }
    }

    // Their sums over the replicas. Each replica reads its own too, so that all do the same.
    template <int COUNT> INLINE void sum_gradients(float* sum, int first, int stride)
    {
        UNROLLED for (int n = 0; n < COUNT; n++) sum[n] = 0;
        receive<ceil_div(COUNT, 3) * REPLICAS, RECEIVED, Gradients, false>(
            tag, [&](int k) { return gradients_of(k % REPLICAS, first + k / REPLICAS * stride); },
            [&](int k, const Gradients& three) {
                UNROLLED for (int n = k / REPLICAS * 3; n < smaller(k / REPLICAS * 3 + 3, COUNT); n++)
                    sum[n] += three.value[n % 3];
            });
    }

    INLINE void send_small()
    {
        ROLLED for (int word = thread(); word < SMALL_WORDS; word += THREADS) {
            float g[3];
            UNROLLED for (int j = 0; j < 3; j++) g[j] = s.small_gradient[min(3 * word + j, SMALL - 1)];
            send_gradients<3>(g, word, 0);
        }
    }

    // The update of the small parameters
    INLINE void update_small()
    {
        const Rule rule = this->rule();
        auto update = [&](int k, const float& g) {
            bool is_weight = k < BIASES;
            if (is_weight && k % OUT4 >= OUTPUTS) return;  // padding
            if (is_weight) add_square(s.small[k]);
            rule.update(s.small[k], g, &s.small_state[0][k], &s.small_state[STATES > 1][k], is_weight);
            if (PASSES > 1) s.small_gradient[k] = 0;
        };
        if constexpr (SUMMED) {
            ROLLED for (int word = thread(); word < SMALL_WORDS; word += THREADS) {
                float g[3];
                sum_gradients<3>(g, word, 0);
                UNROLLED for (int j = 0; j < 3; j++)
                    if (3 * word + j < SMALL) update(3 * word + j, g[j]);
            }
        } else {
            ROLLED for (int k = threadIdx.x; k < SMALL; k += THREADS) update(k, s.small_gradient[k]);
        }
    }

    // Over the samples: error terms of own units (own, own + WARPS, ...) of the last hidden layer, if ERRORS, and
    // gradients of their weights, from output FIRST on, if FIRST is not negative. Lanes are samples.
    template <int COUNT, int FIRST, bool ERRORS> INLINE void last_units(int own, float (&values)[COUNT][VALUES])
    {
        constexpr int BIAS = FIRST < 0 ? 0 : OUTPUTS & (VALUES - 1);
        UNROLLED for (int j = 0; j < COUNT; j++)
            UNROLLED for (int n = 0; n < VALUES; n++) values[j][n] = 0;
        ROLLED for (int c = 0; c < CHUNKS; c++) {
            int b = c * 32 + lane;
            float sum[COUNT], a[COUNT], slope[COUNT] = {};
            UNROLLED for (int j = 0; j < COUNT; j++) sum[j] = s.unit[first_of(LAYERS) + own + j * WARPS][b];
            UNROLLED for (int j = 0; j < COUNT; j++) a[j] = output_of<LAYERS>(sum[j], own + j * WARPS, b);
            UNROLLED for (int n = 0; n < OUT4; n += 4) {
                if (!ERRORS && (n < FIRST || n >= FIRST + VALUES)) continue;
                float4 d = *(float4*)&s.error[b][n];
                float each[4] = {d.x, d.y, d.z, d.w};
                UNROLLED for (int j = 0; j < COUNT; j++) {
                    float4 w = *(float4*)&s.small[(own + j * WARPS) * OUT4 + n];
                    if (ERRORS) slope[j] += d.x * w.x + d.y * w.y + d.z * w.z + d.w * w.w;
                    UNROLLED for (int k = 0; k < 4; k++)
                        if (FIRST >= 0 && n + k - FIRST >= 0 && n + k - FIRST < VALUES && n + k < OUTPUTS)
                            values[j][(n + k - FIRST) & (VALUES - 1)] += a[j] * each[k];
                }
            }
            UNROLLED for (int j = 0; j < COUNT; j++) {
                if (!ERRORS) continue;
                float delta = error_of<LAYERS>(sum[j], slope[j], own + j * WARPS, b);
                s.unit[first_of(LAYERS) + own + j * WARPS][b] = delta;
                values[j][BIAS] += delta;
                if constexpr (LAYERS > 1) {
                    int unit = me * LAST_UNITS + own + j * WARPS;
                    if (unit < Words<LAYERS>::WIDTH)
                        send(words + Words<LAYERS>::ERRORS + (i64)unit * SAMPLES + b, delta, tag);
                }
            }
        }
    }

    // Totals over the lanes: lane n has that of value n % VALUES
    template <int COUNT> INLINE void totals_of(float (&values)[COUNT][VALUES], float (&total)[COUNT])
    {
        if constexpr (VALUES > 8) halve_each<COUNT, 8>(values);
        if constexpr (VALUES > 4) halve_each<COUNT, 4>(values);
        if constexpr (VALUES > 2) halve_each<COUNT, 2>(values);
        halve_each<COUNT, 1>(values);
        UNROLLED for (int j = 0; j < COUNT; j++) total[j] = values[j][0];
        UNROLLED for (int o = VALUES; o < 32; o *= 2)
            UNROLLED for (int j = 0; j < COUNT; j++) total[j] += __shfl_xor_sync(~0u, total[j], o);
    }
    template <int COUNT, int HALF> INLINE void halve_each(float (&values)[COUNT][VALUES])
    {
        UNROLLED for (int j = 0; j < COUNT; j++) halve<HALF, HALF>(values[j], lane);
    }

    // For COUNT own units of a warp, error terms, and the gradients of their weights to the outputs and of their biases
    template <int COUNT> INLINE void units_backward(int own)
    {
        int column = lane & (VALUES - 1);
        float values[COUNT][VALUES], total[COUNT];
        last_units<COUNT, 0, true>(own, values);
        totals_of(values, total);
        UNROLLED for (int j = 0; j < COUNT; j++) {
            int unit = own + j * WARPS, bias = BIASES + first_of(LAYERS) + unit;
            if (opaque(lane) < VALUES && column <= OUTPUTS)
                add_gradient(column < OUTPUTS ? unit * OUT4 + column : bias, total[j]);
        }
    }

    // The same for one unit, where the gradients of its weights are too many for one pass over the samples
    template <int FIRST> INLINE void unit_gradients(int own, float (&total)[ceil_div(OUTPUTS, VALUES)])
    {
        float values[1][VALUES], each[1];
        last_units<1, FIRST, false>(own, values);
        totals_of(values, each);
        total[FIRST / VALUES] = each[0];
        if constexpr (FIRST + VALUES < OUTPUTS) unit_gradients<FIRST + VALUES>(own, total);
    }
    INLINE void unit_backward(int own)
    {
        float total[ceil_div(OUTPUTS, VALUES)], errors[1][VALUES];
        unit_gradients<0>(own, total);
        last_units<1, -1, true>(own, errors);
        float bias = lanes_sum(errors[0][0], 32);
        UNROLLED for (int n = 0; n < OUTPUTS; n += VALUES)
            if (opaque(lane) < VALUES && n + lane < OUTPUTS) add_gradient(own * OUT4 + n + lane, total[n / VALUES]);
        if (opaque(lane) == 0) add_gradient(BIASES + first_of(LAYERS) + own, bias);
    }

    // Error terms of the own units of the last hidden layer, the gradients of their weights and biases, and those of the
    // biases of the outputs
    INLINE void outputs_backward()
    {
        int own = warp;
        if constexpr (TOGETHER > 1)
            ROLLED for (; own + (TOGETHER - 1) * WARPS < LAST_UNITS; own += TOGETHER * WARPS)
                units_backward<TOGETHER>(own);
        ROLLED for (; own < LAST_UNITS; own += WARPS) {
            if constexpr (OUTPUTS < VALUES) units_backward<1>(own);
            else unit_backward(own);
        }
        ROLLED for (int output = warp; output < OUTPUTS; output += WARPS) {
            float sum = 0;
            ROLLED for (int c = 0; c < CHUNKS; c++) sum += s.error[c * 32 + lane][output];
            sum = lanes_sum(sum, 32);
            if (opaque(lane) == 0) add_gradient(OUTPUT_BIASES + output, sum);
        }
    }

    // Gradients of the biases of own units of a layer below the last, from their error terms
    template <int LAYER> INLINE void bias_gradients()
    {
        ROLLED for (int own = warp; own < units(LAYER); own += WARPS) {
            float sum = 0;
            ROLLED for (int c = 0; c < CHUNKS; c++) sum += s.unit[first_of(LAYER) + own][c * 32 + lane];
            sum = lanes_sum(sum, 32);
            if (opaque(lane) == 0) add_gradient(BIASES + first_of(LAYER) + own, sum);
        }
    }

    // The update of a middle layer's weights, from their gradients
    template <int LAYER>
    INLINE void update_task(const Rule& rule, int task, float (&d)[Tasks<LAYER>::HIGH][Tasks<LAYER>::WIDE][4])
    {
        typedef Middle<LAYER> M;
        typedef Tasks<LAYER> G;
        int n = task % G::ACROSS * G::WIDE * 8, m = task / G::ACROSS * G::HIGH * 16;
        UNROLLED for (int i = 0; i < G::HIGH; i++)
            UNROLLED for (int j = 0; j < G::WIDE; j++)
                UNROLLED for (int e = 0; e < 4; e++) {
                    int at = (m + i * 16 + g + e / 2 * 8) * M::STRIDE + n + j * 8 + 2 * t + e % 2;
                    add_square(s.middle[M::BEGIN + at]);
                    rule.update(s.middle[M::BEGIN + at], d[i][j][e], &s.middle[M::STATE + at],
                                &s.middle[M::STATE + (STATES > 1) * M::SIZE + at], true);
                }
    }
    template <int LAYER> INLINE void update_middle()
    {
        typedef Tasks<LAYER> G;
        const Rule rule = this->rule();
        ROLLED for (int task = warp; task < G::COUNT; task += WARPS) {
            float d[G::HIGH][G::WIDE][4];
            sum_gradients<G::NUMBERS>(d[0][0], G::BEGIN + task * 32 * G::WORDS + lane, 32);
            update_task<LAYER>(rule, task, d);
        }
        if constexpr (LAYER > 2) update_middle<LAYER - 1>();
    }

    // A middle layer: partial sums for the units below, gradients of this block's part of the weights and their update,
    // if there are no other replicas, and the error terms of the own units below
    template <int LAYER> INLINE void middle_backward()
    {
        typedef Middle<LAYER> M;
        typedef Words<LAYER> W;
        typedef Tasks<LAYER> G;
        int row = me / M::COLUMNS, column = me % M::COLUMNS;
        float* errors = s.errors_across;
        receive_units<M::ACROSS>(words + W::ERRORS, column * M::ACROSS, W::WIDTH, errors);
        __syncthreads();
        send_products<M::HEIGHT / 8, false>(errors, s.middle + M::BEGIN, M::STRIDE, M::ACROSS,
                                            words + W::BACKWARD + (i64)column * SAMPLES * W::BELOW, row * M::HEIGHT,
                                            W::BELOW);
        __syncthreads();  // all products have read the weights
        const Rule rule = this->rule();
        ROLLED for (int task = warp; task < G::COUNT; task += WARPS) {
            int n = task % G::ACROSS * G::WIDE * 8, m = task / G::ACROSS * G::HIGH * 16;
            float d[G::HIGH][G::WIDE][4] = {};
            multiply<G::HIGH, G::WIDE, false, false>(d, s.middle + M::INPUT + m * SAMPLE_STRIDE, SAMPLE_STRIDE,
                                                     errors + n * SAMPLE_STRIDE, SAMPLE_STRIDE, SAMPLES, lane);
            if constexpr (SUMMED) send_gradients<G::NUMBERS>(d[0][0], G::BEGIN + task * 32 * G::WORDS + lane, 32);
            else update_task<LAYER>(rule, task, d);
        }
        ROLLED for (int n = 0; n < units(LAYER - 1) / 8; n++)
            sum_parts<LAYER - 1, M::COLUMNS>(words + W::BACKWARD, W::BELOW, n, [&](int own, int b, float slope) {
                float& at = s.unit[first_of(LAYER - 1) + own][b];
                float delta = error_of<LAYER - 1>(at, slope, own, b);
                int unit = me * units(LAYER - 1) + own;
                at = delta;
                if constexpr (LAYER > 2)
                    if (unit < W::BELOW) send(words + Words<LAYER - 1>::ERRORS + (i64)unit * SAMPLES + b, delta, tag);
            });
        __syncthreads();
        bias_gradients<LAYER - 1>();
    }

    // The gradient of the first weights from a chunk. Rows 0 to 7 and 8 to 15 of a product are the units of two tiles;
    // with one tile, they are two parts of the error terms of its units, and both halves are added in the end.
    INLINE void first_gradients(int slot, int chunk)
    {
        u32 row = address(&s.x[slot][lane & 15][(lane >> 4) * 16]);
        UNROLLED for (int h = 0; h < 2; h++)
            UNROLLED for (int q = 0; q < PAIRS; q++) {
                u32 part[TILES_N == 1 ? 1 : 2][2][PARTS];  // of a tile, of samples 2t, 2t + 1 (+ 8)
                UNROLLED for (int j = 0; j < (TILES_N == 1 ? 1 : 2); j++)
                    UNROLLED for (int k = 0; k < 2; k++) {
                        int tile = tile_n(2 * q + j);
                        float2 two =
                            *(float2*)&s.unit[min(tile, UNIT_TILES - 1) * 8 + g][chunk * 32 + h * 16 + k * 8 + 2 * t];
                        if (tile >= UNIT_TILES) two = make_float2(0, 0);
                        split(two.x, two.y, part[j][k]);
                    }
                UNROLLED for (int i = 0; i < TILES_K; i++) {
                    u32 x = row + min(tile_k(i), K16 - 1) * 32 + h * 16 * ROW_BYTES;
                    float small[2][4] = {};
                    UNROLLED for (int p = PLANES - 1; p >= 0; p--) {
                        u32 b[4];
                        load_transposed(b, x + 2 * p * ROW);
                        constexpr int STEP = TILES_N == 1 ? 2 : 1;
                        UNROLLED for (int r = (PARTS - 1 - p) / STEP * STEP; r >= 0; r -= STEP) {
                            bool two = TILES_N > 1 || r + 1 < PARTS - p;
                            int next = TILES_N == 1 && two ? r + 1 : r;
                            constexpr int OTHER = TILES_N == 1 ? 0 : 1;
                            u32 a[4] = {part[0][0][r], two ? part[OTHER][0][next] : 0, part[0][1][r],
                                        two ? part[OTHER][1][next] : 0};
                            mma(PLANES > 1 ? small[0] : gradient[i][q][0], a, b[0], b[1]);
                            mma(PLANES > 1 ? small[1] : gradient[i][q][1], a, b[2], b[3]);
                        }
                    }
                    if (PLANES > 1) add(gradient[i][q][0], small[0]), add(gradient[i][q][1], small[1]);
                }
            }
    }

    INLINE void clear_gradients()
    {
        UNROLLED for (int i = 0; i < TILES_K; i++)
            UNROLLED for (int q = 0; q < PAIRS; q++)
                UNROLLED for (int e = 0; e < 8; e++) gradient[i][q][e / 4][e % 4] = 0;
    }

    // The gradient of a first weight, without the scale of the inputs
    INLINE float first_gradient(int i, int j, int e) const
    {
        const float* d = gradient[i][j / 2][e / 2];
        return TILES_N == 1 ? d[e % 2] + d[e % 2 + 2] : d[e % 2 + j % 2 * 2];
    }
    INLINE float first_gradient(int n) const { return first_gradient(n / 4 / TILES_N, n / 4 % TILES_N, n % 4); }

    INLINE void send_first()
    {
        float g[WEIGHTS];
        UNROLLED for (int n = 0; n < WEIGHTS; n++) g[n] = first_gradient(n);
        send_gradients<WEIGHTS>(g, SMALL_WORDS + thread(), THREADS);
    }

    // The update of the weights in registers
    INLINE void update_first_weights()
    {
        const Rule rule = this->rule();
        const float scale = input_scale();
        float g[WEIGHTS];
        if constexpr (SUMMED) sum_gradients<WEIGHTS>(g, SMALL_WORDS + thread(), THREADS);
        UNROLLED for (int i = 0; i < TILES_K; i++) {
            if (i + 1 == TILES_K && tile_k(i) >= K16) break;
            UNROLLED for (int j = 0; j < TILES_N; j++)
                UNROLLED for (int e = 0; e < 4; e++) {
                    float sum = SUMMED ? g[(i * TILES_N + j) * 4 + e] : first_gradient(i, j, e);
                    add_square(weight[i][j][e]);
                    rule.update(weight[i][j][e], scale * sum, state_of(0, i, j, e), state_of(1, i, j, e), true);
                }
        }
    }
};

// -- Rows of samples --------------------------------------------------------------------------------------------------

// Chunks are read ahead, into one slot after another; a turn reads each, and again in its backward pass those that
// have been overwritten. A warp copies rows warp, warp + WARPS, ... of a chunk: if BULK, a lane copies a row;
// else, all lanes.
struct Rows {
    Shared& s;
    const int lane, warp, samples;  // of this launch
    const i64* const order;         // their rows
    int first = 0;                  // of the step's batch, in the launch
    int slot = 0, pass = 0, load = 0;  // of the chunk that is read next
    int next_row = -1;
    int base_slot = 0;  // where the first chunk of a turn lies
    u32 base_phase = 0;

    INLINE Rows(Shared& shared, int thread)
        : s(shared), lane(thread % 32), warp(thread / 32), samples((int)(s.network.stop - s.network.start)),
          order(s.network.order + s.network.start)
    {
    }

    // Where the next chunk begins in its batch
    INLINE int in_batch() const { return first_sample(pass) + (load < CHUNKS ? load : load - CHUNKS) * 32; }

    // Samples of the batch from the next chunk on; 0 or less after the last step
    INLINE int remaining() const { return min(BATCH, samples - first) - in_batch(); }

    // The number of a row of the next chunk in each lane that needs one; -1 beyond the samples
    INLINE void look_up()
    {
        int row = warp + WARPS * lane;
        bool there = lane < 32 / WARPS && row < remaining();
        next_row = there ? (int)order[first + in_batch() + row] : -1;
    }

    INLINE void issue()
    {
        if (first >= samples) return;
        if (BULK) {
            if (next_row >= 0)
                copy_row(address(s.x[slot][warp + WARPS * lane]), s.network.images + (i64)next_row * PLANES * ROW,
                         2 * PLANES * ROW, &s.full[slot]);
            if (warp == 0 && lane == 0) expect(&s.full[slot], max(0, min(32, remaining())) * 2 * PLANES * ROW);
        } else {
            UNROLLED for (int r = 0; r < 32 / WARPS; r++) {
                i64 row = __shfl_sync(~0u, next_row, r);
                if (row < 0) continue;
                const u16* from = s.network.images + row * PLANES * ROW + lane * 8;
                u32 to = address(s.x[slot][warp + WARPS * r]) + lane * 16;
                UNROLLED for (int k = 0; k < PLANES * ROW / 8; k += 32)
                    if (k + lane < PLANES * ROW / 8) copy16(to + k * 16, from + k * 8);
            }
            copies_arrive(&s.full[slot]);
        }
        if (++slot == SLOTS) slot = 0;
        if (++load == LOADS) {
            load = 0;
            if (++pass == PASSES) pass = 0, first += BATCH;
        }
        look_up();
    }

    // Wait for a load of this turn; its slot
    INLINE int await(int number)
    {
        int at = base_slot + number % SLOTS;
        u32 phase = base_phase ^ (number / SLOTS & 1);
        if (at >= SLOTS) at -= SLOTS, phase ^= 1;
        wait(&s.full[at], phase);
        return at;
    }

    INLINE void end_turn()
    {
        base_slot += LOADS % SLOTS, base_phase ^= LOADS / SLOTS & 1;
        if (base_slot >= SLOTS) base_slot -= SLOTS, base_phase ^= 1;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) train_networks(const u8* networks)
{
    DYNAMIC_SHARED(Shared, memory);
    Shared& s = memory[0];
    const int thread = threadIdx.x, block = blockIdx.x + gridDim.x * blockIdx.y;
    for (int k = thread; k < (int)(sizeof(Shared) / 4); k += THREADS) ((u32*)&s)[k] = 0;
    __syncthreads();
    const u32* own = (const u32*)(networks + block / (REPLICAS * BLOCKS) * sizeof(Network));
    for (int k = thread; k < (int)(sizeof(Network) / 4); k += THREADS) ((u32*)&s.network)[k] = own[k];
    if (thread < SLOTS) init(&s.full[thread], BULK ? 1 : THREADS);
    fence_copies();
    __syncthreads();

    const int steps = (int)((s.network.stop - s.network.start + BATCH - 1) / BATCH);
    Rows rows(s, thread);
    Worker w(s, thread, block % BLOCKS);
    rows.look_up();
    ROLLED for (int k = 0; k < SLOTS; k++) rows.issue();
    w.move_all<false>();
    __syncthreads();

    const bool early = CHUNKS == 1 || thread < THREADS / 2;
    ROLLED for (int turn = 0; turn < steps * PASSES; turn++) {
        w.begin_turn(turn);
        if constexpr (DROPOUT >> 1) w.draw_units<1>();

        u32 part[KEEP_PARTS ? TILES_K : 1][TILES_N][2][PARTS];
        if (KEEP_PARTS) {
            UNROLLED for (int i = 0; i < TILES_K; i++)
                UNROLLED for (int j = 0; j < TILES_N; j++) w.split_weight(i, j, part[KEEP_PARTS ? i : 0][j]);
        }
        // Between two barriers, half of the warps finish a chunk before the products of the next and half after them,
        // so that tensor cores have work all the time. Rows are issued last, since others wait for what `finish` sends,
        // unless the next products wait for them.
        auto issue = [&](int c) {
            // Into the slot of the turn's last chunk before; without a backward pass, into that of this chunk
            if (TRAINING && SLOTS > 1 && c == 0 && turn > 0) rows.issue();
            if (!TRAINING || c < CHUNKS - SLOTS) rows.issue();
        };
        auto finish = [&](int c) {
            w.finish<1>(c, [&](int unit, int b) { return w.input_scale() * w.first_sum(c, unit, b); });
            if (SLOTS > 2) issue(c);
        };
        ROLLED for (int c = -1; c < CHUNKS; c++) {
            if (c >= 0 && SLOTS <= 2) issue(c);
            if (c >= 0 && early) finish(c);
            if (c + 1 < CHUNKS) {
                int slot = rows.await(c + 1);
                if (DROPOUT & 1) w.drop_inputs(slot, c + 1);
                w.first_products(slot, c + 1, part);
            }
            if (c >= 0 && !early) finish(c);
            if (c + 1 < CHUNKS) __syncthreads();
        }
        if constexpr (LAYERS > 1) w.middle_forward<2>();
        if constexpr (LAYERS > 2) w.middle_forward<3>();

        w.output_errors();
        w.receive_errors();
        __syncthreads();

        if constexpr (TRAINING) {
            w.outputs_backward();
            if constexpr (LAYERS > 2) w.middle_backward<3>();
            if constexpr (LAYERS > 1) w.middle_backward<2>();
            __syncthreads();
            if constexpr (SUMMED)
                if (w.pass == PASSES - 1) w.send_small();
            if (w.pass == 0) w.clear_gradients();
            ROLLED for (int k = 0; k < CHUNKS; k++) {
                if (k > 0) __syncthreads();
                if (k > 0 && (early || SLOTS == 1)) rows.issue();
                int c = CHUNKS <= SLOTS ? k : k < SLOTS ? CHUNKS - SLOTS + k : k - SLOTS;  // those still there first
                bool again = CHUNKS > SLOTS && k >= SLOTS;
                int slot = rows.await(again ? CHUNKS + c : c);
                if ((DROPOUT & 1) && again) w.drop_inputs(slot, c);
                w.first_gradients(slot, c);
                if (k > 0 && !early && SLOTS > 1) rows.issue();
            }
            if (w.pass == PASSES - 1) {
                if constexpr (SUMMED) {
                    w.send_first();
                    if constexpr (LAYERS > 1) w.update_middle<LAYERS>();
                    w.update_small();  // whose gradients are there by now
                }
                w.update_first_weights();
                if constexpr (!SUMMED) w.update_small();
            }
        }
        rows.end_turn();
        if constexpr (TRAINING && SLOTS == 1) {
            __syncthreads();
            rows.issue();
        }
        w.end_turn();
    }
    __syncthreads();
    if (replica() > 0) return;  // it has the same parameters
    if (SQUARES) w.write_squares();
    if (TRAINING) w.move_all<true>();
}
