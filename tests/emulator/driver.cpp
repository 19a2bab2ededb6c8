// CUDA's driver over host memory, as far as numba-cuda asks for it: GPUs whose kernels are PTX, translated into C (ptx_to_c.py).
//
// Work on a stream is queued, and run as late as CUDA allows: when the host waits for it. So a buffer that is written again too early, or memory
// that is given back too early, shows. Memory starts with 0xA5 in every byte and ends at a page that can't be touched. As with a real driver, most
// calls are errors in a thread without a current context, and in a child that was forked after cuInit. Streams can be captured into graphs, and
// what CUDA forbids in the meantime is an error that spoils the capture.

#include <cuda.h>
#include <dlfcn.h>
#include <pthread.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#define EXPORTED extern "C" __attribute__((visibility("default")))
#define API EXPORTED CUresult
#define LOCKED std::lock_guard<std::recursive_mutex> locked(all)
// Calls are counted by the names of the functions: emulated_calls.
#define COUNTED                     \
  static Calls counted(__func__); \
  counted.count++
#define IN_CONTEXT                                          \
  COUNTED;                                                    \
  if (process != getpid()) return CUDA_ERROR_NOT_INITIALIZED; \
  if (!current()) return CUDA_ERROR_INVALID_CONTEXT;          \
  LOCKED

static std::recursive_mutex all;
static pid_t process = 0;  // which has called cuInit
static thread_local std::vector<CUcontext> contexts;
static CUcontext current() { return contexts.empty() ? nullptr : contexts.back(); }

struct Calls {
  const char* name;
  std::atomic<long> count{0};
  explicit Calls(const char* name) : name(name) {
    LOCKED;
    known().push_back(this);
  }
  static std::vector<Calls*>& known() {
    static std::vector<Calls*> calls;
    return calls;
  }
};

// Lines of a name and a number: how often each function was called that a step may call.
EXPORTED const char* emulated_calls() {
  LOCKED;
  static std::string text;
  text.clear();
  for (Calls* one : Calls::known()) text += std::string(one->name) + " " + std::to_string(one->count) + "\n";
  return text.c_str();
}

static long setting(const char* name, long otherwise) {
  const char* text = getenv(name);
  return text ? atol(text) : otherwise;
}

// --- streams ---

struct Stream;

struct Work {
  std::function<void()> run;
  Stream* after = nullptr;  // run first what this stream had queued, up to number `until`
  uint64_t until = 0;
};

struct Capture;
using Known = std::map<Stream*, uint64_t>;  // how much of each stream's part of a capture comes before

struct Stream {
  bool blocking = true;  // keeps its order with the default stream's work
  std::deque<Work> queue;
  uint64_t done = 0, queued = 0;
  Capture* capture = nullptr;  // the one that it is a part of
  Known known;
  int gpu = 0;
  bool is_default = false;
};

struct Gpu {  // its address is its context
  Stream default_stream;
};

static const int most = 8;
static Gpu gpus[most];

static int number_of(CUcontext context) { return (Gpu*)context - gpus; }

static int here() { return current() ? number_of(current()) : 0; }

struct Event {
  Stream* stream = nullptr;
  uint64_t number = 0;
  double seconds = 0;
  int gpu = 0;
  Capture* capture = nullptr;  // the one that it was recorded in last
  Known known;
};

// Captures and graphs are never freed: events may know them.
struct Capture {
  Stream* origin;
  CUstreamCaptureMode mode;
  pthread_t thread;
  bool valid = true, active = true;
  std::vector<std::function<void()>> nodes;  // in the order of the calls, which is one that their events allow
  std::set<Stream*> members;
};

struct Graph {
  std::vector<std::function<void()>> nodes;
};

static std::set<Stream*> streams;
static std::set<Event*> events;

static Stream* stream_of(CUstream handle) {
  return handle == nullptr || handle == CU_STREAM_LEGACY || handle == CU_STREAM_PER_THREAD ? &gpus[here()].default_stream : (Stream*)handle;
}

static void finish(Stream* stream, uint64_t until) {
  while (stream->done < until) {
    Work work = std::move(stream->queue.front());
    stream->queue.pop_front();
    if (work.after) finish(work.after, work.until);
    if (work.run) work.run();
    stream->done++;
  }
}

static void finish(Stream* stream) { finish(stream, stream->queued); }

static void finish_all() {
  for (Gpu& gpu : gpus) finish(&gpu.default_stream);
  for (Stream* stream : streams) finish(stream);
}

static void queue(Stream* stream, Work work) {
  auto follow = [&](Stream* other) {
    if (other->done < other->queued) stream->queue.push_back({nullptr, other, other->queued}), stream->queued++;
  };
  if (stream->is_default) {
    for (Stream* other : streams)
      if (other->blocking && other->gpu == stream->gpu) follow(other);
  } else if (stream->blocking) {
    follow(&gpus[stream->gpu].default_stream);
  }
  stream->queue.push_back(std::move(work));
  stream->queued++;
  if (stream->queue.size() > 20000) finish(stream);
}

// --- what a capture forbids ---

static std::set<Capture*> captures;  // active ones
static thread_local CUstreamCaptureMode thread_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

static CUresult spoil(Capture* capture, CUresult error) {
  if (capture) capture->valid = false;
  return error;
}

// What might wait for the device, or change memory: captures forbid it to other threads too, unless this thread has said that it is relaxed.
static CUresult unsafe() {
  CUresult result = CUDA_SUCCESS;
  for (Capture* capture : captures) {
    const bool own = pthread_equal(capture->thread, pthread_self());
    const bool forbids = own ? capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED
                             : capture->mode == CU_STREAM_CAPTURE_MODE_GLOBAL && thread_mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
    if (forbids && thread_mode != CU_STREAM_CAPTURE_MODE_RELAXED) result = spoil(capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
  }
  return result;
}

#define UNSAFE \
  if (CUresult forbidden = unsafe()) return forbidden

// The default stream waits for those that are blocking, and so can't be used while one of them is captured.
static CUresult implicit(Stream* stream) {
  CUresult result = CUDA_SUCCESS;
  if (stream->is_default)
    for (Stream* other : streams)
      if (other->blocking && other->capture && other->gpu == stream->gpu) result = spoil(other->capture, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
  return result;
}

// What has to wait for a stream.
static CUresult waits(Stream* stream) {
  if (stream->capture) return spoil(stream->capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
  if (CUresult forbidden = unsafe()) return forbidden;
  return implicit(stream);
}

// Queue what a call asks for, or record it.
static CUresult submit(Stream* stream, std::function<void()> run) {
  if (Capture* capture = stream->capture) {
    if (!capture->valid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    capture->nodes.push_back(std::move(run));
    stream->known[stream]++;
    return CUDA_SUCCESS;
  }
  if (CUresult forbidden = implicit(stream)) return forbidden;
  queue(stream, {std::move(run)});
  return CUDA_SUCCESS;
}

API cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
  std::swap(*mode, thread_mode);
  return CUDA_SUCCESS;
}

API cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode) {
  IN_CONTEXT;
  Stream* stream = stream_of(handle);
  if (stream->is_default) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  if (stream->capture) return CUDA_ERROR_ILLEGAL_STATE;
  stream->capture = new Capture{stream, mode, pthread_self()};
  stream->capture->members.insert(stream);
  stream->known.clear();
  captures.insert(stream->capture);
  return CUDA_SUCCESS;
}

API cuStreamEndCapture(CUstream handle, CUgraph* made) {
  IN_CONTEXT;
  Stream* stream = stream_of(handle);
  Capture* capture = stream->capture;
  *made = nullptr;
  if (!capture) return CUDA_ERROR_ILLEGAL_STATE;
  if (capture->origin != stream) return spoil(capture, CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
  if (capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED && !pthread_equal(capture->thread, pthread_self()))
    return spoil(capture, CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
  bool joined = true;
  for (Stream* member : capture->members) {
    if (member != stream && stream->known[member] < member->known[member]) joined = false;
    member->capture = nullptr;
  }
  captures.erase(capture);
  capture->active = false;
  if (!capture->valid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  if (!joined) return CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
  *made = (CUgraph) new Graph{capture->nodes};
  return CUDA_SUCCESS;
}

API cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus* status) {
  IN_CONTEXT;
  Stream* stream = stream_of(handle);
  if (stream->is_default)
    for (Stream* other : streams)
      if (other->blocking && other->capture && other->gpu == stream->gpu) return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
  *status = !stream->capture        ? CU_STREAM_CAPTURE_STATUS_NONE
            : stream->capture->valid ? CU_STREAM_CAPTURE_STATUS_ACTIVE
                                     : CU_STREAM_CAPTURE_STATUS_INVALIDATED;
  return CUDA_SUCCESS;
}

API cuGraphInstantiateWithFlags(CUgraphExec* made, CUgraph graph, unsigned long long) {
  IN_CONTEXT;
  *made = (CUgraphExec) new Graph(*(Graph*)graph);
  return CUDA_SUCCESS;
}

API cuGraphDestroy(CUgraph) { return CUDA_SUCCESS; }

API cuGraphExecDestroy(CUgraphExec) { return CUDA_SUCCESS; }

API cuGraphGetNodes(CUgraph graph, CUgraphNode*, size_t* count) {
  *count = ((Graph*)graph)->nodes.size();
  return CUDA_SUCCESS;
}

API cuGraphLaunch(CUgraphExec graph, CUstream stream) {
  IN_CONTEXT;
  for (auto& node : ((Graph*)graph)->nodes)
    if (CUresult forbidden = submit(stream_of(stream), node)) return forbidden;
  return CUDA_SUCCESS;
}

API cuStreamCreate(CUstream* made, unsigned flags) {
  IN_CONTEXT;
  auto stream = new Stream;
  stream->blocking = !(flags & CU_STREAM_NON_BLOCKING);
  stream->gpu = here();
  streams.insert(stream);
  *made = (CUstream)stream;
  return CUDA_SUCCESS;
}

API cuStreamCreateWithPriority(CUstream* made, unsigned flags, int) { return cuStreamCreate(made, flags); }

API cuStreamDestroy(CUstream handle) {
  IN_CONTEXT;
  finish(stream_of(handle));
  streams.erase(stream_of(handle));  // and is never freed: events may know it
  return CUDA_SUCCESS;
}

API cuStreamSynchronize(CUstream handle) {
  IN_CONTEXT;
  if (CUresult forbidden = waits(stream_of(handle))) return forbidden;
  finish(stream_of(handle));
  return CUDA_SUCCESS;
}

API cuStreamWaitEvent(CUstream handle, CUevent event, unsigned) {
  IN_CONTEXT;
  auto known = (Event*)event;
  Stream* stream = stream_of(handle);
  if (!known->capture) {  // work outside of a capture can't come before one in it
    if (stream->capture) return spoil(stream->capture, CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
    if (CUresult forbidden = implicit(stream)) return forbidden;
    if (known->stream) queue(stream, {nullptr, known->stream, known->number});
    return CUDA_SUCCESS;
  }
  if (!known->capture->active) return CUDA_ERROR_CAPTURED_EVENT;
  if (stream->is_default) return spoil(known->capture, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
  if (stream->capture && stream->capture != known->capture) {
    spoil(stream->capture, CUDA_SUCCESS);
    return spoil(known->capture, CUDA_ERROR_STREAM_CAPTURE_MERGE);
  }
  if (!stream->capture) {  // it becomes a part of the capture, and has to be waited for before the end
    stream->capture = known->capture;
    stream->capture->members.insert(stream);
    stream->known = {{stream, 1}};
  }
  for (auto& [other, number] : known->known) stream->known[other] = std::max(stream->known[other], number);
  return CUDA_SUCCESS;
}

API cuEventCreate(CUevent* made, unsigned) {
  IN_CONTEXT;
  auto event = new Event;
  event->gpu = here();
  events.insert(event);
  *made = (CUevent)event;
  return CUDA_SUCCESS;
}

API cuEventDestroy(CUevent event) {
  LOCKED;
  events.erase((Event*)event);
  delete (Event*)event;
  return CUDA_SUCCESS;
}

API cuEventRecord(CUevent handle, CUstream stream) {
  IN_CONTEXT;
  auto event = (Event*)handle;
  if (event->gpu != stream_of(stream)->gpu) return CUDA_ERROR_INVALID_HANDLE;
  event->capture = stream_of(stream)->capture;
  if (event->capture) {
    if (!event->capture->valid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    event->known = stream_of(stream)->known;
    return CUDA_SUCCESS;
  }
  if (CUresult forbidden = implicit(stream_of(stream))) return forbidden;
  auto note = [event] {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (events.count(event)) event->seconds = now.tv_sec + 1e-9 * now.tv_nsec;
  };
  queue(stream_of(stream), {note});
  event->stream = stream_of(stream);
  event->number = event->stream->queued;
  return CUDA_SUCCESS;
}

API cuEventRecordWithFlags(CUevent event, CUstream stream, unsigned) { return cuEventRecord(event, stream); }

API cuEventSynchronize(CUevent handle) {
  IN_CONTEXT;
  auto event = (Event*)handle;
  if (event->capture) return spoil(event->capture, CUDA_ERROR_CAPTURED_EVENT);
  UNSAFE;
  if (event->stream) finish(event->stream, event->number);
  return CUDA_SUCCESS;
}

API cuEventQuery(CUevent handle) {
  IN_CONTEXT;
  auto event = (Event*)handle;
  if (event->capture) return spoil(event->capture, CUDA_ERROR_CAPTURED_EVENT);
  UNSAFE;
  return !event->stream || event->stream->done >= event->number ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

API cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end) {
  *milliseconds = 1e3 * (((Event*)end)->seconds - ((Event*)start)->seconds);
  return CUDA_SUCCESS;
}

// --- the device and its context ---

API cuInit(unsigned) {
  if (process && process != getpid()) return CUDA_ERROR_NOT_INITIALIZED;
  process = getpid();
  for (int k = 0; k < most; k++) gpus[k].default_stream.gpu = k, gpus[k].default_stream.is_default = true;
  return CUDA_SUCCESS;
}

API cuDriverGetVersion(int* version) {
  *version = CUDA_VERSION / 1000 * 1000;
  return CUDA_SUCCESS;
}

static int available() { return std::min(most, (int)setting("EMULATED_DEVICES", 2)); }

API cuDeviceGetCount(int* count) {
  *count = available();
  return process ? CUDA_SUCCESS : CUDA_ERROR_NOT_INITIALIZED;
}

API cuDeviceGet(CUdevice* device, int number) {
  *device = number;
  return 0 <= number && number < available() ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

API cuDeviceGetName(char* name, int size, CUdevice) {
  snprintf(name, size, "emulated GPU");
  return CUDA_SUCCESS;
}

API cuDeviceGetUuid(CUuuid* uuid, CUdevice device) {
  memset(uuid, 0xA5 + device, sizeof *uuid);
  return CUDA_SUCCESS;
}

API cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice) {
  static const std::map<int, int> known = {
      {CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 132},     {CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK, 1024},
      {CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X, 1024},         {CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y, 1024},
      {CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z, 64},           {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X, 2147483647},
      {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y, 65535},         {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z, 65535},
      {CU_DEVICE_ATTRIBUTE_WARP_SIZE, 32},                 {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK, 49152},
      {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 9},   {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, 0},
      {CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING, 1},         {CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY, 1},
  };
  auto found = known.find(attribute);
  *value = found == known.end() ? 0 : found->second;
  return CUDA_SUCCESS;
}

API cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  *context = (CUcontext)&gpus[device];
  return CUDA_SUCCESS;
}

API cuDevicePrimaryCtxRelease(CUdevice) { return CUDA_SUCCESS; }

API cuCtxGetCurrent(CUcontext* context) {
  COUNTED;
  *context = current();
  return CUDA_SUCCESS;
}

API cuCtxSetCurrent(CUcontext context) {
  COUNTED;
  if (!contexts.empty()) contexts.pop_back();
  contexts.push_back(context);
  return CUDA_SUCCESS;
}

API cuCtxPushCurrent(CUcontext context) {
  COUNTED;
  contexts.push_back(context);
  return CUDA_SUCCESS;
}

API cuCtxPopCurrent(CUcontext* context) {
  COUNTED;
  if (!current()) return CUDA_ERROR_INVALID_CONTEXT;
  *context = current();
  contexts.pop_back();
  return CUDA_SUCCESS;
}

API cuCtxGetDevice(CUdevice* device) {
  IN_CONTEXT;
  *device = here();
  return CUDA_SUCCESS;
}

API cuCtxSynchronize() {
  IN_CONTEXT;
  for (Capture* capture : captures) spoil(capture, CUDA_SUCCESS);
  if (!captures.empty()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  finish_all();
  return CUDA_SUCCESS;
}

// --- memory ---

// Device addresses are host addresses with this bit flipped: ptx.h.
static const uint64_t device_bit = 1ull << 46;

struct Block {
  size_t size, mapped;
  char* mapping;
  int gpu;
};

static std::map<uint64_t, Block> on_device, pinned;  // by their addresses
static size_t in_use[most];

static size_t capacity() { return setting("EMULATED_MEMORY", 4l << 30); }

static char* host(CUdeviceptr address) { return (char*)(address ^ device_bit); }

static const std::pair<const uint64_t, Block>* block_of(const std::map<uint64_t, Block>& blocks, uint64_t address, size_t size = 1) {
  auto next = blocks.upper_bound(address);
  if (next == blocks.begin()) return nullptr;
  --next;
  return address + size <= next->first + next->second.size ? &*next : nullptr;
}

API cuMemGetInfo(size_t* free, size_t* total) {
  IN_CONTEXT;
  *total = capacity();
  *free = capacity() - in_use[here()];
  return CUDA_SUCCESS;
}

API cuMemAlloc(CUdeviceptr* made, size_t size) {
  IN_CONTEXT;
  if (size == 0) return CUDA_ERROR_INVALID_VALUE;
  UNSAFE;
  const size_t page = 4096, whole = (size + page - 1) / page * page, mapped = whole + 2 * page;
  if (in_use[here()] + size > capacity()) return CUDA_ERROR_OUT_OF_MEMORY;
  char* mapping = (char*)mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  mprotect(mapping + page, whole, PROT_READ | PROT_WRITE);
  memset(mapping + page, 0xA5, whole);
  char* start = mapping + page + (whole - size) / 256 * 256;  // as near to the last page as CUDA's alignment allows
  *made = (uint64_t)start ^ device_bit;
  on_device[*made] = {size, mapped, mapping, here()};
  in_use[here()] += size;
  return CUDA_SUCCESS;
}

API cuMemFree(CUdeviceptr address) {
  IN_CONTEXT;
  auto block = on_device.find(address);
  if (block == on_device.end()) return CUDA_ERROR_INVALID_VALUE;
  UNSAFE;
  finish_all();
  munmap(block->second.mapping, block->second.mapped);
  in_use[block->second.gpu] -= block->second.size;
  on_device.erase(block);
  return CUDA_SUCCESS;
}

API cuMemHostAlloc(void** made, size_t size, unsigned) {
  IN_CONTEXT;
  UNSAFE;
  *made = malloc(size);
  memset(*made, 0xA5, size);
  pinned[(uint64_t)*made] = {size, 0, nullptr, 0};
  return CUDA_SUCCESS;
}

API cuMemFreeHost(void* address) {
  IN_CONTEXT;
  UNSAFE;
  finish_all();
  pinned.erase((uint64_t)address);
  free(address);
  return CUDA_SUCCESS;
}

API cuPointerGetAttribute(void* value, CUpointer_attribute attribute, CUdeviceptr address) {
  IN_CONTEXT;
  const auto device = block_of(on_device, address);
  if (!device && !block_of(pinned, address)) return CUDA_ERROR_INVALID_VALUE;
  if (attribute == CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL) *(int*)value = device ? device->second.gpu : 0;
  else if (attribute == CU_POINTER_ATTRIBUTE_MEMORY_TYPE) *(unsigned*)value = device ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST;
  else return CUDA_ERROR_NOT_SUPPORTED;
  return CUDA_SUCCESS;
}

API cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, size_t size, CUstream stream) {
  IN_CONTEXT;
  if (size && !block_of(on_device, to, size)) return CUDA_ERROR_INVALID_VALUE;
  if (block_of(pinned, (uint64_t)from)) return submit(stream_of(stream), [=] { memcpy(host(to), from, size); });
  if (stream_of(stream)->capture) return spoil(stream_of(stream)->capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
  // what is not pinned is copied to a buffer of the driver's before the call returns
  auto staged = std::make_shared<std::string>((const char*)from, size);
  return submit(stream_of(stream), [=] { memcpy(host(to), staged->data(), size); });
}

API cuMemcpyDtoHAsync(void* to, CUdeviceptr from, size_t size, CUstream stream) {
  IN_CONTEXT;
  if (size && !block_of(on_device, from, size)) return CUDA_ERROR_INVALID_VALUE;
  const bool waiting = !block_of(pinned, (uint64_t)to);
  if (waiting)
    if (CUresult forbidden = waits(stream_of(stream))) return forbidden;
  CUresult result = submit(stream_of(stream), [=] { memcpy(to, host(from), size); });
  if (waiting && result == CUDA_SUCCESS) finish(stream_of(stream));
  return result;
}

API cuMemcpyHtoD(CUdeviceptr to, const void* from, size_t size) {
  UNSAFE;
  CUresult result = cuMemcpyHtoDAsync(to, from, size, nullptr);
  LOCKED;
  finish(stream_of(nullptr));
  return result;
}

API cuMemcpyDtoH(void* to, CUdeviceptr from, size_t size) {
  UNSAFE;
  CUresult result = cuMemcpyDtoHAsync(to, from, size, nullptr);
  LOCKED;
  finish(stream_of(nullptr));
  return result;
}

API cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream) {
  IN_CONTEXT;
  if (!block_of(on_device, to, size) || !block_of(on_device, from, size)) return CUDA_ERROR_INVALID_VALUE;
  return submit(stream_of(stream), [=] { memmove(host(to), host(from), size); });
}

API cuMemsetD8Async(CUdeviceptr address, unsigned char value, size_t size, CUstream stream) {
  IN_CONTEXT;
  if (!block_of(on_device, address, size)) return CUDA_ERROR_INVALID_VALUE;
  return submit(stream_of(stream), [=] { memset(host(address), value, size); });
}

// --- kernels ---

struct Kernel {  // as in ptx.h
  const char* name;
  int n_params;
  void (*run)(unsigned, unsigned, void**);
};

API cuLibraryLoadData(CUlibrary* made, const void* code, CUjit_option*, void**, unsigned, CUlibraryOption*, void**, unsigned) {
  IN_CONTEXT;
  UNSAFE;
  const std::string ptx = (const char*)code, folder = getenv("EMULATED_KERNELS");
  char name[32];
  snprintf(name, sizeof name, "/%016zx", std::hash<std::string>()(ptx));
  const std::string compiled = folder + name + ".so";
  if (access(compiled.c_str(), R_OK)) {
    const std::string own = folder + name + "." + std::to_string(getpid());
    FILE* file = fopen((own + ".ptx").c_str(), "w");
    fputs(ptx.c_str(), file);
    fclose(file);
    const std::string command = std::string(getenv("EMULATED_COMPILER")) + " " + own;
    if (system(command.c_str()) || rename((own + ".so").c_str(), compiled.c_str())) return CUDA_ERROR_INVALID_PTX;
  }
  void* opened = dlopen(compiled.c_str(), RTLD_NOW | RTLD_LOCAL);
  *made = (CUlibrary) new void*(opened);  // each load has a handle of its own, and dlopen gives the same one again
  return opened ? CUDA_SUCCESS : CUDA_ERROR_INVALID_IMAGE;
}

API cuLibraryUnload(CUlibrary) { return CUDA_SUCCESS; }

API cuLibraryGetKernel(CUkernel* found, CUlibrary library, const char* name) {
  for (auto kernel = (Kernel*)dlsym(*(void**)library, "kernels"); kernel->name; kernel++)
    if (!strcmp(kernel->name, name)) return *found = (CUkernel)kernel, CUDA_SUCCESS;
  return CUDA_ERROR_NOT_FOUND;
}

API cuKernelGetFunction(CUfunction* function, CUkernel kernel) {
  *function = (CUfunction)kernel;
  return CUDA_SUCCESS;
}

API cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction) {
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}

API cuKernelGetAttribute(int* value, CUfunction_attribute attribute, CUkernel kernel, CUdevice) {
  return cuFuncGetAttribute(value, attribute, (CUfunction)kernel);
}

API cuLaunchKernelEx(const CUlaunchConfig* shape, CUfunction function, void** params, void**) {
  IN_CONTEXT;
  auto kernel = (Kernel*)function;
  const unsigned blocks = shape->gridDimX, threads = shape->blockDimX;
  if (!blocks || !threads || threads > 1024 || shape->gridDimY * shape->gridDimZ * shape->blockDimY * shape->blockDimZ != 1)
    return CUDA_ERROR_INVALID_VALUE;
  static const bool nothing = setting("EMULATED_NOTHING", 0);
  if (nothing) return CUDA_SUCCESS;
  std::vector<uint64_t> values;  // arguments are read now; each has 8 bytes
  for (int k = 0; k < kernel->n_params; k++) values.push_back(*(uint64_t*)params[k]);
  if (stream_of(shape->hStream)->gpu != here()) return CUDA_ERROR_INVALID_HANDLE;
  for (uint64_t value : values)  // as far as arguments tell: no GPU reads another one's memory
    if (auto block = block_of(on_device, value))
      if (block->second.gpu != here()) return CUDA_ERROR_ILLEGAL_ADDRESS;
  auto run = [=]() mutable {
    std::vector<void*> places;
    for (uint64_t& value : values) places.push_back(&value);
    kernel->run(blocks, threads, places.data());
  };
  return submit(stream_of(shape->hStream), run);
}

API cuLaunchKernel(
    CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned, CUstream stream, void** params,
    void** extra) {
  CUlaunchConfig shape = {gx, gy, gz, bx, by, bz, 0, stream, nullptr, 0};
  return cuLaunchKernelEx(&shape, function, params, extra);
}

// --- names ---

API cuGetErrorName(CUresult error, const char** name) {
  static const std::map<int, const char*> names = {
      {CUDA_SUCCESS, "CUDA_SUCCESS"},
      {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"},
      {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
      {CUDA_ERROR_NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED"},
      {CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT"},
      {CUDA_ERROR_INVALID_PTX, "CUDA_ERROR_INVALID_PTX"},
      {CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"},
      {CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"},
      {CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION"},
      {CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT"},
      {CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED"},
      {CUDA_ERROR_CAPTURED_EVENT, "CUDA_ERROR_CAPTURED_EVENT"},
  };
  auto found = names.find(error);
  *name = found == names.end() ? "another error of the emulated driver" : found->second;
  return CUDA_SUCCESS;
}

API cuGetErrorString(CUresult error, const char** text) { return cuGetErrorName(error, text); }

// cuda.h gives functions the names of their newest versions by macros, so `name` is looked for with these endings.
API cuGetProcAddress(const char* name, void** found, int, cuuint64_t, CUdriverProcAddressQueryResult* result) {
  Dl_info own;
  dladdr((void*)&cuInit, &own);
  void* library = dlopen(own.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  *found = nullptr;
  for (const char* version : {"_v3", "_v2", ""})
    if (!*found) *found = dlsym(library, (std::string(name) + version).c_str());
  if (result) *result = *found ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  return *found ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
