// Copies and sums of arrays of any kind, which every run uses.

#define TOTAL_THREADS 256  // of a block that adds up numbers, as in kernels.py

// `words` of 4 bytes of an array, or `row_words` of each of some rows, as in kernels.py
struct Copied {
    const unsigned* source;
    const int64* rows;
    unsigned* out;
    int64 words, row_words;
};

// out = source, or out = source[rows], for the copies of a table, one for each row of the grid
extern "C" __global__ void copy_words(const u8* table)
{
    Copied copied = ((const Copied*)table)[blockIdx.y];
    for (int64 i = global_x(); i < copied.words; i += threads_x()) {
        int64 from = i;
        if (copied.rows != 0) {
            int64 row = i / copied.row_words;
            from += (copied.rows[row] - row) * copied.row_words;
        }
        copied.out[i] = copied.source[from];
    }
}

// an array of float (kind 0), double (1) or bool (2), as in kernels.py
struct Summed {
    const u8* values;
    int64 size, kind;
};

// sums[x] = the sum of array x of a table, for each column of the grid. The order of additions is fixed, as in
// sum_column. `partials` has a number for each block.
extern "C" __global__ void totals(const u8* table, double* partials, unsigned* arrived, double* sums)
{
    __shared__ double of_threads[TOTAL_THREADS];
    Summed summed = ((const Summed*)table)[blockIdx.x];
    double sum = 0;
#pragma unroll 4
    for (int64 i = global_y() * TOTAL_THREADS + threadIdx.x; i < summed.size; i += threads_y() * TOTAL_THREADS)
        sum += summed.kind == 0   ? ((const float*)summed.values)[i]
               : summed.kind == 1 ? ((const double*)summed.values)[i]
                                  : summed.values[i];
    of_threads[threadIdx.x] = sum;
    for (unsigned half = TOTAL_THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half)
            of_threads[threadIdx.x] += of_threads[threadIdx.x + half];
    }
    double* own = partials + (int64)blockIdx.x * gridDim.y;
    if (threadIdx.x == 0)
        own[blockIdx.y] = of_threads[0];
    if (!is_last_block(arrived) || threadIdx.x > 0)
        return;
    sum = 0;
#pragma unroll 8
    for (unsigned y = 0; y < gridDim.y; y++)
        sum += __ldcg(own + y);
    sums[blockIdx.x] = sum;
}
