// A Triton backend that runs Python in the server's own process: arrays go in and out by a copy,
// and nin.serve.backends does the rest. The server loads it under each backend's name.

#include <dlfcn.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "triton_api.h"

namespace py = pybind11;

namespace {

/// The end of a request or of a load, on its way to the server.
struct Failure {
  TRITONSERVER_Error_Code code;
  std::string message;
};

[[noreturn]] void refuse(const std::string& message) {
  throw Failure{TRITONSERVER_ERROR_INVALID_ARG, message};
}

/// Throws what a function of the server's returned, unless it is success.
void check(TRITONSERVER_Error* error) {
  if (error == nullptr) return;
  Failure failure{TRITONSERVER_ErrorCode(error), TRITONSERVER_ErrorMessage(error)};
  TRITONSERVER_ErrorDelete(error);
  throw failure;
}

/// For calls after which there is nobody left to tell.
void ignore(TRITONSERVER_Error* error) {
  if (error != nullptr) TRITONSERVER_ErrorDelete(error);
}

TRITONSERVER_Error* to_error(const Failure& failure) {
  return TRITONSERVER_ErrorNew(failure.code, failure.message.c_str());
}

/// A Python exception, or one that the Python side returned: its text, and the code of a
/// BackendError.
Failure to_failure(const py::handle& exception) {
  auto code = TRITONSERVER_ERROR_INTERNAL;
  try {
    if (py::hasattr(exception, "triton_code")) {
      code = static_cast<TRITONSERVER_Error_Code>(exception.attr("triton_code").cast<int>());
    }
    auto message = py::str(exception).cast<std::string>();
    if (message.empty()) message = py::str(py::type::handle_of(exception)).cast<std::string>();
    return {code, std::move(message)};
  } catch (const std::exception&) {  // its text can't be had
    return {code, "an exception without a readable text"};
  }
}

/// The exception that is being handled. The GIL must be held: it may be Python's.
Failure current_failure() {
  try {
    throw;
  } catch (const Failure& failure) {
    return failure;
  } catch (const py::error_already_set& error) {
    return to_failure(error.value());
  } catch (const std::exception& error) {
    return {TRITONSERVER_ERROR_INTERNAL, error.what()};
  }
}

std::uint64_t now_ns() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<std::uint64_t>(std::chrono::nanoseconds(now).count());
}

// --- tensors ---

struct Type {
  TRITONSERVER_DataType triton;
  const char* numpy;
};

constexpr Type types[] = {
    {TRITONSERVER_TYPE_BOOL, "?"},    {TRITONSERVER_TYPE_UINT8, "u1"},
    {TRITONSERVER_TYPE_UINT16, "u2"}, {TRITONSERVER_TYPE_UINT32, "u4"},
    {TRITONSERVER_TYPE_UINT64, "u8"}, {TRITONSERVER_TYPE_INT8, "i1"},
    {TRITONSERVER_TYPE_INT16, "i2"},  {TRITONSERVER_TYPE_INT32, "i4"},
    {TRITONSERVER_TYPE_INT64, "i8"},  {TRITONSERVER_TYPE_FP16, "f2"},
    {TRITONSERVER_TYPE_FP32, "f4"},   {TRITONSERVER_TYPE_FP64, "f8"},
    {TRITONSERVER_TYPE_BYTES, "O"},
};

py::dtype to_numpy(TRITONSERVER_DataType type, const std::string& name) {
  for (const auto& known : types) {
    if (known.triton == type) return py::dtype(known.numpy);
  }
  refuse("input '" + name + "' is of a datatype that this server doesn't take");
}

TRITONSERVER_DataType to_triton(const py::array& array) {
  for (const auto& known : types) {
    if (array.dtype().equal(py::dtype(known.numpy))) return known.triton;
  }
  throw std::runtime_error("an output is " + py::str(array.dtype()).cast<std::string>() +
                           ", which the server has no datatype for");
}

/// The bytes of an input, which the server may hold in several buffers.
std::string read_bytes(TRITONBACKEND_Input* input, std::uint32_t buffers, const std::string& name) {
  std::string bytes;
  for (std::uint32_t index = 0; index < buffers; ++index) {
    const void* buffer = nullptr;
    std::uint64_t size = 0;
    auto memory = TRITONSERVER_MEMORY_CPU;
    std::int64_t device = 0;
    check(TRITONBACKEND_InputBuffer(input, index, &buffer, &size, &memory, &device));
    if (memory == TRITONSERVER_MEMORY_GPU) refuse("input '" + name + "' is in GPU memory");
    bytes.append(static_cast<const char*>(buffer), size);
  }
  return bytes;
}

/// The number of elements. Refuses negative dimensions and what can't be as large as `limit`.
std::uint64_t count_elements(const std::vector<py::ssize_t>& shape, std::uint64_t limit,
                             const std::string& name) {
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return 0;
  std::uint64_t count = 1;
  for (const auto size : shape) {
    if (size < 0) refuse("input '" + name + "' has a negative dimension");
    const auto factor = static_cast<std::uint64_t>(size);
    if (count > limit / factor) {
      refuse("input '" + name + "' has more elements than bytes");
    }
    count *= factor;
  }
  return count;
}

/// Triton's form of strings: each its length in four bytes, little-endian, and itself.
py::array read_strings(const std::string& bytes, const std::vector<py::ssize_t>& shape,
                       const std::string& name) {
  const auto count = count_elements(shape, bytes.size() / 4, name);
  py::array array(py::dtype("O"), shape);
  auto** elements = static_cast<PyObject**>(array.mutable_data());
  std::size_t position = 0;
  for (std::uint64_t index = 0; index < count; ++index) {
    std::uint32_t size = 0;
    if (bytes.size() - position < sizeof size) refuse("input '" + name + "' ends too soon");
    std::memcpy(&size, bytes.data() + position, sizeof size);
    position += sizeof size;
    if (bytes.size() - position < size) refuse("input '" + name + "' ends too soon");
    PyObject* before = elements[index];
    elements[index] = py::bytes(bytes.data() + position, size).release().ptr();
    Py_XDECREF(before);
    position += size;
  }
  if (position != bytes.size()) refuse("input '" + name + "' has bytes after its last string");
  return array;
}

py::array read_input(TRITONBACKEND_Request* request, std::uint32_t index, std::string& name) {
  TRITONBACKEND_Input* input = nullptr;
  check(TRITONBACKEND_RequestInputByIndex(request, index, &input));
  const char* text = nullptr;
  auto datatype = TRITONSERVER_TYPE_INVALID;
  const std::int64_t* dims = nullptr;
  std::uint32_t rank = 0, buffers = 0;
  std::uint64_t byte_size = 0;
  check(TRITONBACKEND_InputProperties(input, &text, &datatype, &dims, &rank, &byte_size, &buffers));
  name = text;
  const auto dtype = to_numpy(datatype, name);
  const std::vector<py::ssize_t> shape(dims, dims + rank);
  const auto bytes = read_bytes(input, buffers, name);
  if (datatype == TRITONSERVER_TYPE_BYTES) return read_strings(bytes, shape, name);
  const auto itemsize = static_cast<std::uint64_t>(dtype.itemsize());
  const auto expected = count_elements(shape, bytes.size() / itemsize, name) * itemsize;
  if (bytes.size() != expected) {
    refuse("input '" + name + "' has " + std::to_string(bytes.size()) + " bytes, its shape needs " +
           std::to_string(expected));
  }
  py::array array(dtype, shape);
  std::memcpy(array.mutable_data(), bytes.data(), bytes.size());
  return array;
}

/// A request's inputs by name. Throws Failure where it isn't whole, or nobody waits for it.
py::dict read_request(TRITONBACKEND_Request* request) {
  bool cancelled = false;
  check(TRITONBACKEND_RequestIsCancelled(request, &cancelled));
  if (cancelled) throw Failure{TRITONSERVER_ERROR_CANCELLED, "the client has gone"};
  std::uint32_t count = 0;
  check(TRITONBACKEND_RequestInputCount(request, &count));
  py::dict inputs;
  for (std::uint32_t index = 0; index < count; ++index) {
    std::string name;
    auto array = read_input(request, index, name);
    inputs[py::str(name)] = std::move(array);
  }
  return inputs;
}

std::string strings_to_bytes(const py::array& array) {
  std::string bytes;
  for (const auto& element : array.attr("ravel")().cast<py::list>()) {
    const auto text = element.cast<std::string>();
    const auto size = static_cast<std::uint32_t>(text.size());
    bytes.append(reinterpret_cast<const char*>(&size), sizeof size);
    bytes.append(text);
  }
  return bytes;
}

void write_output(TRITONBACKEND_Response* response, const char* name, const py::array& array) {
  const auto datatype = to_triton(array);
  const std::vector<std::int64_t> shape(array.shape(), array.shape() + array.ndim());
  TRITONBACKEND_Output* output = nullptr;
  check(TRITONBACKEND_ResponseOutput(response, &output, name, datatype, shape.data(),
                                     static_cast<std::uint32_t>(shape.size())));
  const auto contiguous = py::array::ensure(array, py::array::c_style);
  if (!contiguous) throw std::bad_alloc();
  const auto strings =
      datatype == TRITONSERVER_TYPE_BYTES ? strings_to_bytes(contiguous) : std::string();
  const bool are_strings = datatype == TRITONSERVER_TYPE_BYTES;
  const void* data = are_strings ? strings.data() : contiguous.data();
  const auto size = are_strings ? strings.size() : static_cast<std::size_t>(contiguous.nbytes());
  void* buffer = nullptr;
  auto memory = TRITONSERVER_MEMORY_CPU;
  std::int64_t device = 0;
  check(TRITONBACKEND_OutputBuffer(output, &buffer, size, &memory, &device));
  if (memory == TRITONSERVER_MEMORY_GPU) refuse("outputs in GPU memory aren't supported");
  if (size > 0) std::memcpy(buffer, data, size);
}

/// Fills a response with those of the outputs that the request asks for.
void write_response(TRITONBACKEND_Request* request, TRITONBACKEND_Response* response,
                    const py::dict& outputs) {
  std::uint32_t count = 0;
  check(TRITONBACKEND_RequestOutputCount(request, &count));
  for (std::uint32_t index = 0; index < count; ++index) {
    const char* name = nullptr;
    check(TRITONBACKEND_RequestOutputName(request, index, &name));
    if (!outputs.contains(name)) {
      throw std::runtime_error("the model gave no output '" + std::string(name) + "'");
    }
    write_output(response, name, outputs[name].cast<py::array>());
  }
}

// --- executing ---

/// The Python object that answers for a model instance.
struct Instance {
  py::object model;
};

/// One request of a batch, from its arrays to its answer.
struct Call {
  TRITONBACKEND_Request* request;
  TRITONBACKEND_Response* response = nullptr;
  TRITONSERVER_Error* error = nullptr;  // the answer, where there is no other
  std::uint64_t batch_size = 0;

  void fail(const Failure& failure) {
    if (error == nullptr) error = to_error(failure);
  }
};

std::uint64_t batch_size(const py::dict& inputs) {
  for (const auto& [name, array] : inputs) {
    const auto shape = array.attr("shape").cast<py::tuple>();
    return shape.empty() ? 1 : shape[0].cast<std::uint64_t>();
  }
  return 1;
}

/// Runs the requests that are whole; every call has a response or an error then.
void run(const Instance& instance, std::vector<Call>& calls, std::uint64_t& compute_start_ns,
         std::uint64_t& compute_end_ns) {
  const py::gil_scoped_acquire gil;
  std::vector<Call*> whole;
  py::list requests;
  for (auto& call : calls) {
    try {
      check(TRITONBACKEND_ResponseNew(&call.response, call.request));
      auto inputs = read_request(call.request);
      call.batch_size = batch_size(inputs);
      requests.append(std::move(inputs));
      whole.push_back(&call);
    } catch (...) {
      call.fail(current_failure());
    }
  }
  compute_start_ns = compute_end_ns = now_ns();
  if (whole.empty()) return;
  try {
    const auto answers = instance.model.attr("execute")(requests).cast<py::list>();
    compute_end_ns = now_ns();
    if (answers.size() != whole.size()) throw std::runtime_error("not one answer to each request");
    for (std::size_t index = 0; index < whole.size(); ++index) {
      Call& call = *whole[index];
      try {
        if (!py::isinstance<py::dict>(answers[index])) throw to_failure(answers[index]);
        write_response(call.request, call.response, answers[index].cast<py::dict>());
      } catch (...) {
        call.fail(current_failure());
      }
    }
  } catch (...) {
    const auto failure = current_failure();
    for (auto* call : whole) call->fail(failure);
  }
}

// --- starting ---

/// Starts the one interpreter of the process, unless another backend has; it is never ended.
void start_python() {
  if (Py_IsInitialized()) return;
  // Python's extension modules aren't linked to libpython: they look its symbols up in the process.
  Dl_info library{};
  dladdr(reinterpret_cast<void*>(&Py_IsInitialized), &library);
  dlopen(library.dli_fname, RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD);

  PyPreConfig preconfig;
  PyPreConfig_InitPythonConfig(&preconfig);
  preconfig.utf8_mode = 1;  // paths are UTF-8, whatever the locale
  PyConfig config;
  PyConfig_InitPythonConfig(&config);
  config.install_signal_handlers = 0;  // the server has its own
  auto status = Py_PreInitialize(&preconfig);
  // the environment's interpreter: its packages are found from there
  const char* executable = std::getenv("NIN_PYTHON");
  if (!PyStatus_Exception(status) && executable != nullptr) {
    status = PyConfig_SetBytesString(&config, &config.executable, executable);
  }
  if (!PyStatus_Exception(status)) status = Py_InitializeFromConfig(&config);
  PyConfig_Clear(&config);
  if (PyStatus_Exception(status)) {
    throw std::runtime_error(std::string("Python can't start: ") +
                             (status.err_msg != nullptr ? status.err_msg : "no reason given"));
  }
  PyEval_SaveThread();
}

std::string config_of(TRITONBACKEND_Model* model) {
  TRITONSERVER_Message* message = nullptr;
  check(TRITONBACKEND_ModelConfig(model, 1, &message));
  const char* base = nullptr;
  std::size_t size = 0;
  check(TRITONSERVER_MessageSerializeToJson(message, &base, &size));
  std::string json(base, size);
  ignore(TRITONSERVER_MessageDelete(message));
  return json;
}

/// nin.serve.backends.load(...) for an instance.
py::object load(TRITONBACKEND_ModelInstance* instance) {
  TRITONBACKEND_Model* model = nullptr;
  TRITONBACKEND_Backend* backend = nullptr;
  const char *backend_name = nullptr, *instance_name = nullptr, *location = nullptr;
  auto type = TRITONBACKEND_ARTIFACT_FILESYSTEM;
  auto kind = TRITONSERVER_INSTANCEGROUPKIND_AUTO;
  std::uint64_t version = 0;
  std::int32_t device = 0;
  check(TRITONBACKEND_ModelInstanceModel(instance, &model));
  check(TRITONBACKEND_ModelBackend(model, &backend));
  check(TRITONBACKEND_BackendName(backend, &backend_name));
  check(TRITONBACKEND_ModelInstanceName(instance, &instance_name));
  check(TRITONBACKEND_ModelInstanceKind(instance, &kind));
  check(TRITONBACKEND_ModelInstanceDeviceId(instance, &device));
  check(TRITONBACKEND_ModelRepository(model, &type, &location));
  check(TRITONBACKEND_ModelVersion(model, &version));
  const bool on_gpu = kind == TRITONSERVER_INSTANCEGROUPKIND_GPU;
  return py::module_::import("nin.serve.backends")
      .attr("load")(backend_name, config_of(model), py::bytes(location), version, instance_name,
                    on_gpu ? py::object(py::int_(device)) : py::none());
}

}  // namespace

TRITONSERVER_Error* TRITONBACKEND_Initialize(TRITONBACKEND_Backend*) {
  try {
    std::uint32_t major = 0, minor = 0;
    check(TRITONBACKEND_ApiVersion(&major, &minor));
    if (major != 1) throw std::runtime_error("the server's backend interface isn't version 1");
    start_python();
  } catch (const Failure& failure) {
    return to_error(failure);
  } catch (const std::exception& error) {
    return to_error({TRITONSERVER_ERROR_INTERNAL, error.what()});
  }
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_ModelInstanceInitialize(TRITONBACKEND_ModelInstance* instance) {
  const py::gil_scoped_acquire gil;
  try {
    auto state = std::make_unique<Instance>(load(instance));
    check(TRITONBACKEND_ModelInstanceSetState(instance, state.get()));
    state.release();  // the instance's from here on, until it is finalized
  } catch (...) {
    return to_error(current_failure());
  }
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_ModelInstanceFinalize(TRITONBACKEND_ModelInstance* instance) {
  void* state = nullptr;
  if (auto* error = TRITONBACKEND_ModelInstanceState(instance, &state)) return error;
  const py::gil_scoped_acquire gil;
  const std::unique_ptr<Instance> end(static_cast<Instance*>(state));
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_ModelInstanceExecute(TRITONBACKEND_ModelInstance* instance,
                                                       TRITONBACKEND_Request** requests,
                                                       std::uint32_t count) {
  const auto start_ns = now_ns();
  auto compute_start_ns = start_ns, compute_end_ns = start_ns;
  void* state = nullptr;
  if (auto* error = TRITONBACKEND_ModelInstanceState(instance, &state)) return error;
  std::vector<Call> calls;
  for (std::uint32_t index = 0; index < count; ++index) calls.push_back({requests[index]});
  run(*static_cast<Instance*>(state), calls, compute_start_ns, compute_end_ns);

  const auto end_ns = now_ns();
  std::uint64_t images = 0;
  for (auto& call : calls) {
    const bool success = call.error == nullptr;
    if (success) images += call.batch_size;
    if (call.response != nullptr) {
      ignore(TRITONBACKEND_ResponseSend(call.response, TRITONSERVER_RESPONSE_COMPLETE_FINAL,
                                        call.error));
    }
    if (!success) TRITONSERVER_ErrorDelete(call.error);
    ignore(TRITONBACKEND_ModelInstanceReportStatistics(instance, call.request, success, start_ns,
                                                       compute_start_ns, compute_end_ns, end_ns));
    ignore(TRITONBACKEND_RequestRelease(call.request, TRITONSERVER_REQUEST_RELEASE_ALL));
  }
  if (images > 0) {
    ignore(TRITONBACKEND_ModelInstanceReportBatchStatistics(
        instance, images, start_ns, compute_start_ns, compute_end_ns, end_ns));
  }
  return nullptr;
}
