// cpp/src/file: the reader of files, for open files of Python.

#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <exception>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "diba/diba.hpp"
#include "file/checksummed.hpp"
#include "file/factors.hpp"
#include "file/safetensors.hpp"
#include "file/source.hpp"

namespace py = pybind11;

namespace {

using Bytes = py::array_t<std::uint8_t, py::array::c_style>;
using Strings = py::typing::Dict<py::str, py::str>;
using Shape = py::typing::Tuple<py::int_, py::ellipsis>;
using Tensors = py::typing::Dict<py::str, py::typing::Tuple<py::str, Shape, py::int_, py::int_>>;

// A binary file of Python that can seek: a regular file, or bytes in memory. The core works without the GIL, and takes
// it for every read.
class PythonSource : public diba::Source {
 public:
  PythonSource(py::object file, std::string name)
      : file_(std::move(file)), name_(std::move(name)), size_(file_.attr("seek")(0, 2).cast<std::uint64_t>()) {}
  ~PythonSource() noexcept override {}  // the way out of the GIL is not declared noexcept

  std::uint64_t size() const override { return size_; }

  void read(std::uint64_t begin, std::size_t length, unsigned char* out) override {
    const bool working = unlocked_.has_value();
    unlocked_.reset();
    file_.attr("seek")(begin);
    while (length > 0) {
      py::memoryview view = py::memoryview::from_memory(out, static_cast<py::ssize_t>(length));
      const auto found = file_.attr("readinto")(view).cast<std::size_t>();
      view.attr("release")();  // so that no view of this memory outlives it
      if (found == 0 || found > length) diba::fail_format(name_, "is cut short: it became smaller while it was read");
      out += found;
      length -= found;
    }
    if (working) unlocked_.emplace();
  }

  const std::string& name() const { return name_; }

  // work() without the GIL.
  template <typename Work>
  auto run(Work work) {
    require(!unlocked_.has_value(), "the file is being read by another thread");
    const Ended ended{unlocked_};
    unlocked_.emplace();
    return work();
  }

 private:
  struct Ended {
    std::optional<Unlocked>& unlocked;
    ~Ended() noexcept(false) { unlocked.reset(); }
  };

  py::object file_;
  std::string name_;
  std::uint64_t size_;
  std::optional<Unlocked> unlocked_;
};

// A file's name as messages show it; bytes that are no UTF-8 are written as escapes.
std::string shown(const py::str& name) {
  return py::reinterpret_steal<py::bytes>(PyUnicode_AsEncodedString(name.ptr(), "utf-8", "backslashreplace"));
}

// name -> (dtype, shape, begin, end)
Tensors tensors_of(const diba::Header& header) {
  Tensors result;
  for (const auto& [key, entry] : header.tensors) {
    py::tuple shape(entry.shape.size());
    for (std::size_t i = 0; i < entry.shape.size(); ++i) shape[i] = py::int_(entry.shape[i]);
    result[py::str(key)] = py::make_tuple(entry.dtype, shape, entry.begin, entry.end);
  }
  return result;
}

py::typing::Tuple<Strings, Tensors> read_header(py::object file, const py::str& name) {
  PythonSource source(std::move(file), shown(name));
  const diba::Header header = source.run([&] { return diba::read_header(source, source.name()); });
  return py::make_tuple(header.metadata, tensors_of(header));
}

// An array that owns what the vector held.
template <typename T>
py::array_t<T> array_of(std::vector<T> values, std::vector<py::ssize_t> shape) {
  auto owned = std::make_unique<std::vector<T>>(std::move(values));
  T* data = owned->data();
  const py::capsule owner(owned.release(), [](void* held) { delete static_cast<std::vector<T>*>(held); });
  return py::array_t<T>(std::move(shape), data, owner);
}

py::typing::Tuple<Strings, Floats, Words, Floats, Words, Floats> read_factors(py::object file, const py::str& name) {
  PythonSource source(std::move(file), shown(name));
  diba::StoredFactors f = source.run([&] { return diba::read_factors(source, source.name()); });
  const auto count = [](std::size_t size) { return static_cast<py::ssize_t>(size); };
  const auto m = count(f.rows), k = count(f.k), n = count(f.cols);
  return py::make_tuple(f.metadata, array_of(std::move(f.d1), {m}),
                        array_of(std::move(f.b1), {m, count(diba::words_for(f.k))}), array_of(std::move(f.d2), {k}),
                        array_of(std::move(f.b2), {k, count(diba::words_for(f.cols))}), array_of(std::move(f.d3), {n}));
}

class ChecksummedFile {
 public:
  ChecksummedFile(py::object file, const py::str& name, const std::string& format, const std::string& what,
                  std::int64_t version)
      : source_(std::move(file), shown(name)), checksummed_(source_.run([&] {
          return diba::ChecksummedFile(source_, source_.name(), {format, what, version, diba::kLongestHeader});
        })) {}

  const std::map<std::string, std::string>& metadata() const { return checksummed_.header().metadata; }
  Tensors tensors() const { return tensors_of(checksummed_.header()); }

  std::int64_t integer(const std::string& key, std::int64_t minimum, std::int64_t maximum) const {
    return checksummed_.integer(key, minimum, maximum);
  }

  void read(const std::string& key, Bytes& out) {
    const auto& tensors = checksummed_.header().tensors;
    const auto found = tensors.find(key);
    require(found != tensors.end() && found->second.end - found->second.begin == static_cast<std::uint64_t>(out.size()),
            "out must have the bytes of a tensor of the file");
    std::uint8_t* data = out.mutable_data();
    source_.run([&] { checksummed_.read(key, data); });
  }

 private:
  PythonSource source_;
  diba::ChecksummedFile checksummed_;
};

void translate(std::exception_ptr thrown) {
  try {
    if (thrown) std::rethrow_exception(thrown);
  } catch (const diba::FormatError& error) {
    py::set_error(py::module_::import("diba.errors").attr("FormatError"), error.what());
  }
}

}  // namespace

void bind_file(py::module_& m) {
  py::register_local_exception_translator(&translate);
  m.attr("format_version") = diba::kFormatVersion;
  const py::arg file("file"), name("name");
  m.def("read_header", &read_header, file, name);
  m.def("read_factors", &read_factors, file, name);
  py::class_<ChecksummedFile>(m, "ChecksummedFile")
      .def(py::init<py::object, const py::str&, const std::string&, const std::string&, std::int64_t>(), file, name,
           py::arg("kind"), py::arg("what"), py::arg("version"))
      .def_property_readonly("metadata", &ChecksummedFile::metadata)
      .def_property_readonly("tensors", &ChecksummedFile::tensors)
      .def("integer", &ChecksummedFile::integer, py::arg("key"), py::arg("minimum"), py::arg("maximum"))
      .def("read", &ChecksummedFile::read, py::arg("key"), py::arg("out").noconvert());
}
