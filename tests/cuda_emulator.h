// Runs CUDA kernels on a CPU, to check their arithmetic, their memory layouts and their synchronization.
//
// Each thread of a launch is a fiber. It yields at each operation that synchronizes or is asynchronous, and a random
// choice, fixed by a seed, says which thread continues. Asynchronous copies and stores to global memory take effect at
// some time between their issue and the wait that promises them. Code that relies on an order that nothing guarantees
// therefore computes wrong numbers, or stops, with some seeds.
//
// A kernel calls the functions in namespace cuda_host, named after PTX instructions, where it has inline assembly for a
// GPU; GPUMLP_HOST is defined. One translation unit defines CUDA_HOST_IMPLEMENTATION. tests/emulator.py compiles,
// launches and explains messages.
//
// Found: wrong arithmetic, fragments and layouts; missing or misplaced barriers and waits; wrong phases, counts and step
// numbers; values seen torn (vectors) or out of order (relaxed stores); deadlocks. Not found: errors in the assembly
// itself, which only nvcc reads; cache operators, scopes and fences, which have no effect here. Threads switch only at
// the operations below. A thread that loads one address twice in a row is taken to spin, and waits for a change.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#define __global__
#define __device__ inline __attribute__((always_inline))
#define __forceinline__
#define __restrict__ __restrict
#define __launch_bounds__(...)

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct uint3 { unsigned x, y, z; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace cuda_host {
struct Place { uint3 thread, block, threads, blocks; };
extern const Place* here;  // of the running thread

struct Launch {
    uint32_t grid[2], threads;
    uint32_t shared_bytes;  // dynamic shared memory of a block
    int32_t sum_bits;       // bits that mma keeps below a float's last bit; negative: exact sums, rounded once
    uint64_t seed;          // seed % 4: Order, seed / 4 % 3: Effect; the rest only varies the random numbers
    uint64_t limit;         // scheduling decisions after which a launch is given up
};
enum Order { UNIFORM, STICKY_WARP, WARP_PRIORITY, BLOCK_PRIORITY };  // which thread continues
enum Effect { LATE, RANDOM, EARLY };  // when asynchronous operations take effect; LATE: when no thread can continue

// Runs entry(arguments) in every thread. Returns 0, or 1 with the reason in message.
int run(void (*entry)(void**), void** arguments, const Launch& launch, char* message, int size);

// Shared memory: addresses are 32 bits, as in the .shared state space.
void* dynamic_shared();
uint32_t shared_address(const void* p);

void barrier_sync();
void syncwarp(uint32_t mask);
uint64_t shuffle(uint32_t mask, uint64_t value, int kind, int argument, int width);  // kind: 'i' index, 'x'
void ldmatrix(uint32_t* r, uint32_t address, int count, bool transposed);       // .m8n8.x1, .x2, .x4, .b16
void mma_m16n8k16_bf16(float* d, const uint32_t* a, uint32_t b0, uint32_t b1);  // float32 sums, d += a b

void cp_async(uint32_t to, const void* from, int bytes);
void cp_async_mbarrier_arrive_noinc(uint32_t barrier);
void cp_async_bulk(uint32_t to, const void* from, int bytes, uint32_t barrier);  // from global memory, with complete_tx
void mbarrier_init(uint32_t barrier, uint32_t count);
void mbarrier_arrive(uint32_t barrier);
void mbarrier_arrive_expect_tx(uint32_t barrier, uint32_t bytes);
bool mbarrier_test_wait_parity(uint32_t barrier, uint32_t parity);

// ld.relaxed and st.relaxed in global memory: `count` elements of `bytes` bytes. As the memory model says of vectors,
// each element is an operation of its own, in any order.
void load(const void* from, void* value, int bytes, int count);
void store(void* to, const void* value, int bytes, int count);

template <class... A, size_t... I> void call(void (*kernel)(A...), void** a, std::index_sequence<I...>)
{
    kernel(*(A*)a[I]...);
}
template <class... A> void call(void (*kernel)(A...), void** a) { call(kernel, a, std::index_sequence_for<A...>()); }
}  // namespace cuda_host

// int launch_KERNEL(void** arguments, Launch*, char* message, int size), with arguments as for cuLaunchKernel
#define CUDA_HOST_KERNEL(kernel)                                                                                        \
    extern "C" int launch_##kernel(void** arguments, const cuda_host::Launch* launch, char* message, int size)          \
    {                                                                                                                   \
        return cuda_host::run([](void** a) { cuda_host::call(kernel, a); }, arguments, *launch, message, size);         \
    }

#define threadIdx (cuda_host::here->thread)
#define blockIdx (cuda_host::here->block)
#define blockDim (cuda_host::here->threads)
#define gridDim (cuda_host::here->blocks)

template <class T> inline T min(T a, T b) { return b < a ? b : a; }
template <class T> inline T max(T a, T b) { return a < b ? b : a; }
template <class To, class From> inline To bits_as(From value)
{
    static_assert(sizeof(To) >= sizeof(From));
    To to = {};
    memcpy(&to, &value, sizeof value);
    return to;
}
inline uint32_t __float_as_uint(float f) { return bits_as<uint32_t>(f); }
inline float __uint_as_float(uint32_t u) { return bits_as<float>(u); }
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector)
{
    uint64_t both = (uint64_t)b << 32 | a;
    uint32_t r = 0;
    for (int k = 0; k < 4; k++) {
        uint32_t s = selector >> (4 * k) & 15, byte = both >> (s & 7) * 8 & 255;
        r |= (s & 8 ? (byte & 128 ? 255u : 0u) : byte) << 8 * k;
    }
    return r;
}

struct __nv_bfloat16 { uint16_t x; };
inline __nv_bfloat16 __float2bfloat16_rn(float f)  // to nearest, ties to even; any NaN becomes 0x7fff
{
    uint32_t u = __float_as_uint(f);
    if ((u & 0x7fffffff) > 0x7f800000) return {0x7fff};
    return {(uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}

__device__ void __syncthreads() { cuda_host::barrier_sync(); }
__device__ void __syncwarp(uint32_t mask = ~0u) { cuda_host::syncwarp(mask); }
#define CUDA_HOST_SHUFFLE(name, kind)                                                                                   \
    template <class T> __device__ T name(uint32_t mask, T value, int argument, int width = 32)                          \
    {                                                                                                                   \
        uint64_t r = cuda_host::shuffle(mask, bits_as<uint64_t>(value), kind, argument, width);                         \
        memcpy(&value, &r, sizeof value);                                                                               \
        return value;                                                                                                   \
    }
CUDA_HOST_SHUFFLE(__shfl_sync, 'i')
CUDA_HOST_SHUFFLE(__shfl_xor_sync, 'x')

#ifdef CUDA_HOST_IMPLEMENTATION
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>
#include <csignal>
#include <dlfcn.h>
#include <sys/mman.h>
#ifndef __x86_64__
#define CUDA_HOST_UCONTEXT  // slower: it saves the signal mask at each switch
#include <ucontext.h>
#endif

namespace cuda_host {
const Place* here;
namespace {
constexpr size_t STACK = 64 << 10, GUARD = 8;
constexpr uint64_t MAGIC = 0x6d62617272696572;  // where an mbarrier lies, so that a store over it is noticed

#define CUDA_HOST_OPERATIONS                                                                                            \
    X(START, "start") X(BARRIER, "__syncthreads") X(SYNCWARP, "__syncwarp") X(SHUFFLE, "shfl.sync")                      \
    X(LDMATRIX, "ldmatrix") X(MMA, "mma.sync") X(COPY, "cp.async") X(COPY_ARRIVE, "cp.async.mbarrier.arrive")           \
    X(INIT, "mbarrier.init") X(ARRIVE, "mbarrier.arrive") X(BULK, "cp.async.bulk") X(WAIT, "mbarrier wait")             \
    X(LOAD, "ld") X(STORE, "st")
enum Operation {
#define X(name, text) name,
    CUDA_HOST_OPERATIONS
#undef X
};
const char* const operation_names[] = {
#define X(name, text) text,
    CUDA_HOST_OPERATIONS
#undef X
};

struct Random {  // splitmix64
    uint64_t state;
    uint64_t next()
    {
        uint64_t z = state += 0x9e3779b97f4a7c15;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
        z = (z ^ z >> 27) * 0x94d049bb133111eb;
        return z ^ z >> 31;
    }
    uint32_t below(uint32_t n) { return (uint32_t)((next() >> 32) * n >> 32); }
};

struct Block;
struct Fiber;

struct Meeting {  // of the lanes of a warp, in one operation
    uint32_t mask, arrived;
    Operation operation;
    void* arguments[32];
};
struct Warp {
    Fiber* lanes[32];
    uint32_t live = 0, runnable = 0;
    int place = -1;  // in the list of runnable warps
    uint64_t priority;
    Block* block;
    std::vector<Meeting> meetings;
};
struct Mbarrier {
    uint32_t offset, expected, pending;
    int64_t bytes = 0;  // of bulk copies, expected and not arrived yet
    uint32_t phase = 0;
};
struct Block {
    int index;
    char* shared;
    uint64_t priority;
    int live = 0;  // threads that have not ended
    std::vector<Fiber*> arrived;  // at __syncthreads
    std::vector<Mbarrier> mbarriers;
};
struct Item {  // of a thread's queue of asynchronous copies
    Operation operation;
    uint32_t to;
    const char* from;
    int bytes;
};
struct Look { uint64_t key, version; };
struct Fiber {
    Place place;
    void* stack_pointer;
#ifdef CUDA_HOST_UCONTEXT
    ucontext_t context;
#endif
    Block* block;
    Warp* warp;
    int lane;
    bool ended = false;
    Operation operation = START;
    const void* from = nullptr;  // the call of that operation
    uint64_t detail = 0;
    std::vector<Item> queue;
    size_t queue_head = 0;
    int copier = -1;  // place in the list of threads with queued copies
    std::vector<Look> looks;
    uint64_t stamp = 0;
};
struct Store {  // to global memory, issued and not yet visible
    Fiber* writer;
    char* to;
    int bytes;
    char data[16];
};
struct Bulk {  // a copy to shared memory under way
    Fiber* issuer;
    const char* from;
    uint32_t to, barrier;
    int bytes;
};
struct Watcher { Fiber* fiber; uint64_t stamp; };
struct Watched {  // an address on which threads spin
    uint64_t version = 0;
    std::vector<Watcher> watchers;
};

struct State {
    const Launch* launch;
    void (*entry)(void**);
    void** arguments;
    Random random;
    Order order;
    Effect effect;
    uint32_t pause;  // RANDOM: decisions between two effects, on average
    uint64_t decisions = 0;
    std::vector<Block> blocks;
    std::vector<Warp*> warps, runnable;
    std::vector<Fiber*> fibers, copiers;
    std::vector<Store> stores;
    std::vector<Bulk> bulks;
    std::unordered_map<const void*, size_t> store_at;  // address: place in `stores`
    std::unordered_map<uint64_t, Watched> watched;
    std::vector<std::pair<void*, size_t>> mapped;
    Warp* last = nullptr;
    int live = 0;
    void* main_stack_pointer;
#ifdef CUDA_HOST_UCONTEXT
    ucontext_t main_context;
#endif
    const Fiber* issuer = nullptr;  // of the asynchronous operation that takes effect
    std::string error;
};
State* g;
Fiber* self;

#ifndef CUDA_HOST_UCONTEXT
}
extern "C" void cuda_host_switch(void** save, void* to);
asm(R"(
.text
.hidden cuda_host_switch
.globl cuda_host_switch
.type cuda_host_switch, @function
cuda_host_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size cuda_host_switch, .-cuda_host_switch
)");
namespace {
#endif

[[noreturn]] void leave()
{
#ifndef CUDA_HOST_UCONTEXT
    void* unused;
    cuda_host_switch(&unused, g->main_stack_pointer);
#else
    setcontext(&g->main_context);
#endif
    __builtin_unreachable();
}

std::string text(const char* format, ...)
{
    char buffer[1024];
    va_list list;
    va_start(list, format);
    vsnprintf(buffer, sizeof buffer, format, list);
    va_end(list);
    return buffer;
}

std::string call_place(const void* p)  // offset in the library, for addr2line
{
    Dl_info info;
    if (!p || !dladdr(p, &info)) return "?";
    return text("+0x%lx", (long)((const char*)p - (const char*)info.dli_fbase - 1));
}

[[noreturn]] void fail(const std::string& reason)
{
    g->error = reason;
    const Fiber* f = g->issuer ? g->issuer : self;
    g->error += text("\n  in %s of block %d, thread %u", g->issuer ? "an asynchronous operation" : operation_names[f->operation],
                     f->block->index, f->place.thread.x);
    if (!g->issuer) g->error += ", called at " + call_place(f->from);
    leave();
}

void access_fault(int, siginfo_t* info, void*) { fail(text("access to %p, where there is no memory, after the operation", info->si_addr)); }

[[noreturn]] void deadlock()
{
    std::map<std::string, std::pair<int, Fiber*>> groups;
    for (Fiber* f : g->fibers) {
        if (f->ended) continue;
        std::string key = text("block %d: %s", f->block->index, operation_names[f->operation]);
        if (f->operation == WAIT) key += text(" (shared 0x%x, parity %d)", (unsigned)(f->detail >> 1), (int)(f->detail & 1));
        groups.emplace(key + " called at " + call_place(f->from), std::make_pair(0, f)).first->second.first++;
    }
    g->error = "deadlock: no thread can continue";
    for (auto& group : groups) {
        Fiber* first = group.second.second;
        g->error += text("\n  %s: %d threads, first %u", group.first.c_str(), group.second.first, first->place.thread.x);
        if (first->operation == LOAD) g->error += text(", which spins on global 0x%llx", (unsigned long long)first->looks[0].key << 3);
    }
    self = nullptr;
    leave();
}

// ---- scheduling

void make_runnable(Fiber* f)
{
    Warp* w = f->warp;
    if (!w->runnable) {
        w->place = (int)g->runnable.size();
        g->runnable.push_back(w);
    }
    w->runnable |= 1u << f->lane;
}

void make_blocked(Fiber* f)
{
    Warp* w = f->warp;
    w->runnable &= ~(1u << f->lane);
    if (!w->runnable) {
        Warp* moved = g->runnable.back();
        g->runnable[moved->place = w->place] = moved;
        g->runnable.pop_back();
    }
}

bool deliver();

Warp* choose_warp()
{
    auto& list = g->runnable;
    if (list.empty()) return nullptr;
    Random& r = g->random;
    if (g->order == STICKY_WARP && g->last && g->last->runnable && r.below(64)) return g->last;
    if (g->order == UNIFORM || g->order == STICKY_WARP) return list[r.below((uint32_t)list.size())];
    bool by_block = g->order == BLOCK_PRIORITY;
    Warp* best = *std::max_element(list.begin(), list.end(), [&](Warp* a, Warp* b) {
        if (by_block && a->block != b->block) return a->block->priority < b->block->priority;
        return a->priority < b->priority;
    });
    if (!r.below(1024)) best->priority = r.next();
    if (by_block && !r.below(8192)) best->block->priority = r.next();
    return best;
}

Fiber* next_fiber()
{
    for (;;) {
        if (++g->decisions > g->launch->limit) fail("given up: too many scheduling decisions; some threads may wait for ever");
        if (g->effect == RANDOM && !g->random.below(g->pause)) deliver();
        if (Warp* w = g->last = choose_warp()) {
            uint32_t turn = g->random.below(32), turned = w->runnable >> turn | w->runnable << (-turn & 31);
            return w->lanes[(__builtin_ctz(turned) + turn) & 31];
        }
        if (deliver()) continue;
        if (!g->live) return nullptr;
        deadlock();
    }
}

void switch_to(Fiber* f)
{
    Fiber* old = self;
    if (f == old) return;
    self = f;
    if (f) here = &f->place;
#ifndef CUDA_HOST_UCONTEXT
    cuda_host_switch(old ? &old->stack_pointer : &g->main_stack_pointer, f ? f->stack_pointer : g->main_stack_pointer);
#else
    swapcontext(old ? &old->context : &g->main_context, f ? &f->context : &g->main_context);
#endif
}

void yield() { switch_to(next_fiber()); }
void block()
{
    make_blocked(self);
    yield();
}
void enter(Operation operation, const void* from)
{
    self->operation = operation;
    self->from = from;
    if (operation != LOAD && operation != WAIT) self->looks.clear();
}
#define CUDA_HOST_ENTER(operation) enter(operation, __builtin_return_address(0))

void release_block(Block* b)
{
    for (Fiber* f : b->arrived)
        if (f != self) make_runnable(f);
    b->arrived.clear();
}

// The meeting in the lane that comes last, which acts for all and then calls part(); null in the others.
Meeting* meet(uint32_t mask, void* arguments)
{
    Warp* w = self->warp;
    if (!(mask >> self->lane & 1)) fail(text("lane %d is not in its own mask 0x%08x", self->lane, mask));
    if (mask & ~w->live) fail(text("mask 0x%08x names lanes that have ended or do not exist", mask));
    Meeting* m = nullptr;
    for (Meeting& each : w->meetings)
        if (each.arrived && each.mask == mask) m = &each;
    for (Meeting& each : w->meetings)
        if (!m && !each.arrived) m = &each;
    if (!m) m = &w->meetings.emplace_back();
    if (!m->arrived) m->mask = mask, m->operation = self->operation;
    if (m->operation != self->operation) fail(text("lanes of a warp meet in different operations: other lanes are in %s", operation_names[m->operation]));
    m->arguments[self->lane] = arguments;
    m->arrived |= 1u << self->lane;
    if (m->arrived == mask) return m;
    block();
    return nullptr;
}

void part(Meeting* m)
{
    for (uint32_t rest = m->arrived & ~(1u << self->lane); rest; rest &= rest - 1) make_runnable(self->warp->lanes[__builtin_ctz(rest)]);
    m->arrived = 0;
}

char* shared_pointer(Block* b, uint32_t offset, int bytes, int alignment)
{
    if (offset % alignment) fail(text("shared address 0x%x is not a multiple of %d", offset, alignment));
    if (offset + bytes > g->launch->shared_bytes) fail(text("shared address 0x%x: %d bytes reach past the block's %u bytes", offset, bytes, g->launch->shared_bytes));
    return b->shared + offset;
}

// ---- spinning: a thread that has looked at all it waits for, and sees nothing new, is blocked until something changes

uint64_t key(const void* global) { return (uint64_t)global >> 3; }
uint64_t key(Block* b, uint32_t offset) { return ~((uint64_t)b->index << 24 | offset); }

void changed(uint64_t key)
{
    Watched& w = g->watched[key];
    w.version++;
    for (Watcher& each : w.watchers)
        if (each.stamp == each.fiber->stamp) {
            each.fiber->stamp++;
            make_runnable(each.fiber);
        }
    w.watchers.clear();
}

void look(uint64_t key)
{
    auto& looks = self->looks;
    if (std::any_of(looks.begin(), looks.end(), [&](Look& each) { return each.key == key; })) {
        if (std::all_of(looks.begin(), looks.end(), [](Look& each) { return g->watched[each.key].version == each.version; })) {
            self->stamp++;
            for (Look& each : looks) g->watched[each.key].watchers.push_back({self, self->stamp});
            block();
        }
        looks.clear();
    }
    looks.push_back({key, g->watched[key].version});
}

// ---- mbarriers

Mbarrier& mbarrier_at(Block* b, uint32_t offset)
{
    for (Mbarrier& each : b->mbarriers)
        if (each.offset == offset) {
            if (memcmp(shared_pointer(b, offset, 8, 8), &MAGIC, 8)) fail(text("the mbarrier at shared 0x%x was overwritten", offset));
            return each;
        }
    fail(text("no mbarrier at shared 0x%x", offset));
}

void advance(Block* b, Mbarrier& m)
{
    if (m.pending || m.bytes) return;
    m.phase++;
    m.pending = m.expected;
    changed(key(b, m.offset));
}

void arrive(Block* b, uint32_t offset)
{
    Mbarrier& m = mbarrier_at(b, offset);
    if (!m.pending) fail(text("the mbarrier at shared 0x%x expects no more arrivals", offset));
    m.pending--;
    advance(b, m);
}

// ---- asynchronous effects

void make_visible(const Store& s)
{
    memcpy(s.to, s.data, s.bytes);
    changed(key(s.to));
}

void deliver_store(size_t at)
{
    Store s = g->stores[at];
    g->store_at.erase(s.to);
    if (at + 1 < g->stores.size()) {
        g->stores[at] = g->stores.back();
        g->store_at[g->stores[at].to] = at;
    }
    g->stores.pop_back();
    make_visible(s);
}

void deliver_copy(Fiber* f)
{
    Item* item = &f->queue[f->queue_head];
    if (item->operation == COPY) {  // copies before an arrival in any order
        uint32_t n = 1;
        while (n < 8 && f->queue_head + n < f->queue.size() && item[n].operation == COPY) n++;
        std::swap(item[0], item[g->random.below(n)]);
    }
    Item i = *item;
    if (++f->queue_head == f->queue.size()) {
        f->queue.clear();
        f->queue_head = 0;
        Fiber* moved = g->copiers.back();
        g->copiers[moved->copier = f->copier] = moved;
        g->copiers.pop_back();
        f->copier = -1;
    }
    g->issuer = f;
    if (i.operation == COPY) {
        memcpy(shared_pointer(f->block, i.to, i.bytes, i.bytes), i.from, i.bytes);
    } else if (i.operation == COPY_ARRIVE) {
        arrive(f->block, i.to);
    }
    g->issuer = nullptr;
}

void deliver_bulk(size_t at)
{
    Bulk bulk = g->bulks[at];
    g->bulks[at] = g->bulks.back();
    g->bulks.pop_back();
    g->issuer = bulk.issuer;
    Block* b = bulk.issuer->block;
    memcpy(shared_pointer(b, bulk.to, bulk.bytes, 16), bulk.from, bulk.bytes);
    Mbarrier& m = mbarrier_at(b, bulk.barrier);
    m.bytes -= bulk.bytes;
    advance(b, m);
    g->issuer = nullptr;
}

bool deliver()
{
    size_t n = g->copiers.size() + g->stores.size() + g->bulks.size();
    if (!n) return false;
    size_t k = g->random.below((uint32_t)n);
    if (k >= g->copiers.size() + g->stores.size()) {
        deliver_bulk(k - g->copiers.size() - g->stores.size());
    } else if (k >= g->copiers.size()) {
        deliver_store(k - g->copiers.size());
    } else {
        Fiber* f = g->copiers[k];
        for (int count = 1 + g->random.below(16); count && f->copier >= 0; count--) deliver_copy(f);
    }
    return true;
}

void enqueue(Item item)
{
    self->queue.push_back(item);
    if (self->copier < 0) {
        self->copier = (int)g->copiers.size();
        g->copiers.push_back(self);
    }
    if (g->effect == EARLY)
        while (self->copier >= 0) deliver_copy(self);
    yield();
}

// ---- arithmetic of mma

float bf16(uint32_t u) { return __uint_as_float(u << 16); }

// d += a b as tensor cores are reported to sum: eight products and the sum so far are cut off at a common exponent, the
// result is cut off to a float.
void multiply(const float (*a)[16], const float (*b)[8], float (*d)[8], int bits)
{
    for (int i = 0; i < 16; i++) {
        if (bits < 0) {
            double sum[8];
            for (int n = 0; n < 8; n++) sum[n] = d[i][n];
            for (int k = 0; k < 16; k++)
                for (int n = 0; n < 8; n++) sum[n] += (double)a[i][k] * b[k][n];
            for (int n = 0; n < 8; n++) d[i][n] = (float)sum[n];
            continue;
        }
        for (int half = 0; half < 16; half += 8) {
            double product[9][8], largest[8], scale[8], back[8];
            int32_t sum[8] = {};
            for (int n = 0; n < 8; n++) {
                product[8][n] = d[i][n];
                largest[n] = std::fabs(product[8][n]);
            }
            for (int k = 0; k < 8; k++)
                for (int n = 0; n < 8; n++) {
                    double p = (double)a[i][half + k] * b[half + k][n], s = std::fabs(p);
                    product[k][n] = p;
                    largest[n] = s > largest[n] ? s : largest[n];
                }
            bool odd = false;
            for (int n = 0; n < 8; n++) {  // scale = 2^(23 + bits - exponent)
                uint64_t exponent = bits_as<uint64_t>(largest[n]) >> 52;
                odd = odd || exponent > 1023 + 254;
                exponent = exponent < 1023 - 250 ? 1023 - 250 : exponent;
                scale[n] = bits_as<double>((uint64_t)(2046 + 23 + bits - exponent) << 52);
                back[n] = bits_as<double>((uint64_t)(exponent - 23 - bits) << 52);
            }
            for (int k = 0; k < 9; k++)  // a NaN is never the largest
                for (int n = 0; n < 8; n++) odd = odd || product[k][n] != product[k][n];
            if (odd) {  // infinity or NaN
                for (int n = 0; n < 8; n++) {
                    double s = 0;
                    for (int k = 0; k < 9; k++) s += product[k][n];
                    d[i][n] = (float)s;
                }
                continue;
            }
            for (int k = 0; k < 9; k++)
                for (int n = 0; n < 8; n++) sum[n] += (int32_t)(product[k][n] * scale[n]);
            for (int n = 0; n < 8; n++) {
                double s = sum[n] * back[n];
                d[i][n] = (float)bits_as<double>(bits_as<uint64_t>(s) & ~0x1fffffffull);
            }
        }
    }
}

// ---- start and end

void end_thread()
{
    Fiber* f = self;
    Block* b = f->block;
    f->ended = true;
    make_blocked(f);
    f->warp->live &= ~(1u << f->lane);
    for (Meeting& each : f->warp->meetings)
        if (each.arrived && each.mask >> f->lane & 1) fail("a thread ends while other lanes of its warp wait for it");
    g->live--;
    b->live--;
    if (b->live && (int)b->arrived.size() == b->live) release_block(b);
    if (b->live) return;
    for (Fiber* each : g->copiers)
        if (each->block == b) fail("the block ends while cp.async is still under way");
    for (Bulk& each : g->bulks)
        if (each.issuer->block == b) fail("the block ends while cp.async.bulk is still under way");
    if (std::any_of(b->shared + g->launch->shared_bytes, b->shared + g->launch->shared_bytes + GUARD, [](char c) { return c != '\x55'; }))
        fail("the block wrote past its dynamic shared memory");
}

void thread_main()
{
    g->entry(g->arguments);
    end_thread();
    switch_to(next_fiber());
    __builtin_unreachable();
}

char* map(size_t bytes)
{
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        perror("mmap");
        abort();
    }
    g->mapped.push_back({p, bytes});
    return (char*)p;
}

void start_block(Block& b)
{
    const Launch& launch = *g->launch;
    char* stacks = map(launch.threads * STACK);
    b.shared = map(launch.shared_bytes + GUARD);
    memset(b.shared, 0xff, launch.shared_bytes);  // NaN
    memset(b.shared + launch.shared_bytes, 0x55, GUARD);
    for (unsigned t = 0; t < launch.threads; t++) {
        Fiber* f = new Fiber;
        if (t % 32 == 0) {
            g->warps.push_back(new Warp);
            g->warps.back()->block = &b;
            g->warps.back()->priority = g->random.next();
        }
        f->block = &b, f->warp = g->warps.back(), f->lane = t % 32;
        f->warp->lanes[f->lane] = f;
        f->warp->live |= 1u << f->lane;
        f->place.thread = {t, 0, 0}, f->place.block = {b.index % launch.grid[0], b.index / launch.grid[0], 0};
        f->place.threads = {launch.threads, 1, 1}, f->place.blocks = {launch.grid[0], launch.grid[1], 1};
        char* stack = stacks + t * STACK;
        char* top = stack + STACK - 64 - t % 61 * 192;  // at different places, for the sake of the cache
#ifndef CUDA_HOST_UCONTEXT
        void** p = (void**)((uintptr_t)top & ~(uintptr_t)15);
        *--p = nullptr;
        *--p = (void*)thread_main;
        p -= 6;
        f->stack_pointer = p;
#else
        getcontext(&f->context);
        f->context.uc_stack = {stack, 0, (size_t)(top - stack)};
        makecontext(&f->context, thread_main, 0);
#endif
        g->fibers.push_back(f);
        make_runnable(f);
        g->live++;
        b.live++;
    }
}
}  // namespace

int run(void (*entry)(void**), void** arguments, const Launch& launch, char* message, int size)
{
    State state{};
    g = &state;
    self = nullptr;
    state.launch = &launch, state.entry = entry, state.arguments = arguments;
    state.random.state = launch.seed * 0x9e3779b97f4a7c15 + 1;
    state.order = (Order)(launch.seed % 4), state.effect = (Effect)(launch.seed / 4 % 3);
    state.pause = 4u << 3 * (launch.seed / 12 % 3);
    state.blocks.resize(launch.grid[0] * launch.grid[1]);
    for (Block& b : state.blocks) {
        b.index = (int)(&b - state.blocks.data());
        b.priority = state.random.next();
        start_block(b);
    }
    static char handler_stack[64 << 10];
    struct sigaction action = {}, old_action;
    stack_t stack = {}, old_stack;
    stack.ss_sp = handler_stack, stack.ss_size = sizeof handler_stack;
    action.sa_sigaction = access_fault, action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaltstack(&stack, &old_stack);
    sigaction(SIGSEGV, &action, &old_action);
    switch_to(next_fiber());
    sigaction(SIGSEGV, &old_action, nullptr);
    sigaltstack(&old_stack, nullptr);
    snprintf(message, size, "%s", state.error.c_str());
    for (auto& each : state.mapped) munmap(each.first, each.second);
    for (Fiber* f : state.fibers) delete f;
    for (Warp* w : state.warps) delete w;
    g = nullptr;
    return !state.error.empty();
}

// ---- the operations

void* dynamic_shared() { return self->block->shared; }

uint32_t shared_address(const void* p)
{
    const char* c = (const char*)p;
    if (c < self->block->shared || c > self->block->shared + g->launch->shared_bytes) fail("the address is not in this block's shared memory");
    return (uint32_t)(c - self->block->shared);
}

void barrier_sync()
{
    CUDA_HOST_ENTER(BARRIER);
    Block* b = self->block;
    b->arrived.push_back(self);
    if ((int)b->arrived.size() < b->live) return block();
    release_block(b);
    yield();
}

void syncwarp(uint32_t mask)
{
    CUDA_HOST_ENTER(SYNCWARP);
    if (Meeting* m = meet(mask, nullptr)) part(m);
}

uint64_t shuffle(uint32_t mask, uint64_t value, int kind, int argument, int width)
{
    CUDA_HOST_ENTER(SHUFFLE);
    struct Arguments { uint64_t value, result; int source; } a;
    int lane = self->lane, begin = lane & ~(width - 1), source = lane;
    if (kind == 'i') source = begin + (argument & (width - 1));
    if (kind == 'x' && (lane ^ argument) < begin + width) source = lane ^ argument;
    if (!(mask >> source & 1)) fail(text("lane %d reads lane %d, which is not in mask 0x%08x", lane, source, mask));
    a.value = value, a.source = source;
    if (Meeting* m = meet(mask, &a)) {
        for (uint32_t rest = mask; rest; rest &= rest - 1) {
            Arguments* each = (Arguments*)m->arguments[__builtin_ctz(rest)];
            each->result = ((Arguments*)m->arguments[each->source])->value;
        }
        part(m);
    }
    return a.result;
}

void ldmatrix(uint32_t* r, uint32_t address, int count, bool transposed)
{
    CUDA_HOST_ENTER(LDMATRIX);
    struct Arguments { uint32_t* r; uint32_t address; } a = {r, address};
    Meeting* m = meet(~0u, &a);
    if (!m) return;
    for (int k = 0; k < count; k++) {
        uint16_t matrix[8][8];
        for (int row = 0; row < 8; row++) memcpy(matrix[row], shared_pointer(self->block, ((Arguments*)m->arguments[8 * k + row])->address, 16, 16), 16);
        for (int lane = 0; lane < 32; lane++) {
            int i = lane / 4, j = lane % 4 * 2;
            uint16_t low = transposed ? matrix[j][i] : matrix[i][j], high = transposed ? matrix[j + 1][i] : matrix[i][j + 1];
            ((Arguments*)m->arguments[lane])->r[k] = low | (uint32_t)high << 16;
        }
    }
    part(m);
}

void mma_m16n8k16_bf16(float* d, const uint32_t* a, uint32_t b0, uint32_t b1)
{
    CUDA_HOST_ENTER(MMA);
    struct Arguments { float* d; const uint32_t* a; uint32_t b[2]; } mine = {d, a, {b0, b1}};
    Meeting* m = meet(~0u, &mine);
    if (!m) return;
    float A[16][16], B[16][8], D[16][8];
    for (int lane = 0; lane < 32; lane++) {
        Arguments& v = *(Arguments*)m->arguments[lane];
        int row = lane / 4, pair = lane % 4 * 2;
        for (int h = 0; h < 2; h++) {
            uint32_t u = v.a[h], w = v.a[2 + h];
            A[row + 8 * h][pair] = bf16(u), A[row + 8 * h][pair + 1] = bf16(u >> 16);
            A[row + 8 * h][pair + 8] = bf16(w), A[row + 8 * h][pair + 9] = bf16(w >> 16);
            B[pair + 8 * h][row] = bf16(v.b[h]), B[pair + 8 * h + 1][row] = bf16(v.b[h] >> 16);
            D[row + 8 * h][pair] = v.d[2 * h], D[row + 8 * h][pair + 1] = v.d[2 * h + 1];
        }
    }
    multiply(A, B, D, g->launch->sum_bits);
    for (int lane = 0; lane < 32; lane++) {
        float* to = ((Arguments*)m->arguments[lane])->d;
        int row = lane / 4, pair = lane % 4 * 2;
        to[0] = D[row][pair], to[1] = D[row][pair + 1], to[2] = D[row + 8][pair], to[3] = D[row + 8][pair + 1];
    }
    part(m);
}

void cp_async(uint32_t to, const void* from, int bytes)
{
    CUDA_HOST_ENTER(COPY);
    shared_pointer(self->block, to, bytes, bytes);
    if ((uintptr_t)from % bytes) fail(text("global %p is not a multiple of %d bytes", from, bytes));
    enqueue({COPY, to, (const char*)from, bytes});
}

void cp_async_bulk(uint32_t to, const void* from, int bytes, uint32_t barrier)
{
    CUDA_HOST_ENTER(BULK);
    if (bytes % 16) fail(text("%d bytes are not a multiple of 16", bytes));
    if ((uintptr_t)from % 16) fail(text("global %p is not a multiple of 16 bytes", from));
    shared_pointer(self->block, to, bytes, 16);
    mbarrier_at(self->block, barrier);
    g->bulks.push_back({self, (const char*)from, to, barrier, bytes});
    if (g->effect == EARLY) deliver_bulk(g->bulks.size() - 1);
    yield();
}

void cp_async_mbarrier_arrive_noinc(uint32_t barrier)
{
    CUDA_HOST_ENTER(COPY_ARRIVE);
    mbarrier_at(self->block, barrier);
    enqueue({COPY_ARRIVE, barrier, nullptr, 0});
}

void mbarrier_init(uint32_t barrier, uint32_t count)
{
    CUDA_HOST_ENTER(INIT);
    yield();
    Block* b = self->block;
    memcpy(shared_pointer(b, barrier, 8, 8), &MAGIC, 8);
    for (Mbarrier& each : b->mbarriers)
        if (each.offset == barrier) fail("there is an mbarrier already");
    b->mbarriers.push_back({barrier, count, count});
}

void mbarrier_arrive(uint32_t barrier)
{
    CUDA_HOST_ENTER(ARRIVE);
    yield();
    arrive(self->block, barrier);
}

void mbarrier_arrive_expect_tx(uint32_t barrier, uint32_t bytes)
{
    CUDA_HOST_ENTER(ARRIVE);
    yield();
    mbarrier_at(self->block, barrier).bytes += bytes;
    arrive(self->block, barrier);
}

bool mbarrier_test_wait_parity(uint32_t barrier, uint32_t parity)
{
    CUDA_HOST_ENTER(WAIT);
    self->detail = (uint64_t)barrier << 1 | parity;
    yield();
    if ((mbarrier_at(self->block, barrier).phase & 1) != parity) return true;
    look(key(self->block, barrier));
    return (mbarrier_at(self->block, barrier).phase & 1) != parity;
}

void load(const void* from, void* value, int bytes, int count)
{
    CUDA_HOST_ENTER(LOAD);
    yield();
    if ((uintptr_t)from % (bytes * count)) fail(text("global %p is not a multiple of %d bytes", from, bytes * count));
    for (int k = 0; k < bytes * count; k += 8) look(key((const char*)from + k));
    int first = g->random.below(count);
    for (int k = 0; k < count; k++) {
        const char* p = (const char*)from + (first + k) % count * bytes;
        if (k && !g->random.below(4)) yield();
        auto own = g->store_at.find(p);
        if (own != g->store_at.end() && g->stores[own->second].writer == self) deliver_store(own->second);
        memcpy((char*)value + (first + k) % count * bytes, p, bytes);
    }
}

void store(void* to, const void* value, int bytes, int count)
{
    CUDA_HOST_ENTER(STORE);
    if ((uintptr_t)to % (bytes * count)) fail(text("global %p is not a multiple of %d bytes", to, bytes * count));
    for (int k = 0; k < count; k++) {
        Store s = {self, (char*)to + k * bytes, bytes, {}};
        memcpy(s.data, (const char*)value + k * bytes, bytes);
        auto older = g->store_at.find(s.to);  // stores to one address stay in order
        if (older != g->store_at.end()) deliver_store(older->second);
        if (g->effect == EARLY) {
            make_visible(s);
        } else {
            g->store_at[s.to] = g->stores.size();
            g->stores.push_back(s);
        }
    }
    yield();
}
}  // namespace cuda_host
#endif  // CUDA_HOST_IMPLEMENTATION
