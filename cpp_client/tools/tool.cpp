#include "tool.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <utility>

#include "benchmark.h"
#include "idx.h"
#include "nin/error.h"
#include "output.h"

namespace nin::tool {
namespace {

/// All images of the command line, one after the other.
struct Inputs {
  std::vector<std::string> names;
  Items items;
};

constexpr std::size_t usual_batch = 16;

/// A file, or the standard input, part by part: neither a device nor a pipe needs to end.
class File {
 public:
  explicit File(const std::string& path) : input_(path == "-" ? std::cin : file_) {
    if (path == "-") return;
    std::error_code ignored;
    if (std::filesystem::is_directory(path, ignored)) {
      throw Error("it is a folder, expected a file");
    }
    file_.open(path, std::ios::binary);
    if (!file_) throw Error("can't open it");
  }

  /// The next part; empty at the end.
  std::span<const std::uint8_t> next() {
    constexpr std::uint64_t most = std::uint64_t{4} << 30;
    input_.read(reinterpret_cast<char*>(part_.data()), std::ssize(part_));
    if (input_.bad()) throw Error("can't read it");
    const auto got = static_cast<std::size_t>(input_.gcount());
    if ((total_ += got) > most) throw Error("it has more than 4 GiB");
    return std::span(part_).first(got);
  }

 private:
  std::ifstream file_;
  std::istream& input_;
  std::vector<std::uint8_t> part_ = std::vector<std::uint8_t>(1 << 16);
  std::uint64_t total_ = 0;
};

/// Begins with a part that has been read.
NextPart parts_of(File& file, std::span<const std::uint8_t> first) {
  return
      [&file, first]() mutable { return first.empty() ? file.next() : std::exchange(first, {}); };
}

/// The largest image that is decoded has 400 MB uncompressed.
std::vector<std::uint8_t> read_image(const NextPart& next) {
  constexpr std::size_t most = std::size_t{512} << 20;
  std::vector<std::uint8_t> bytes;
  for (auto part = next(); !part.empty(); part = next()) {
    bytes.insert(bytes.end(), part.begin(), part.end());
    if (bytes.size() > most) throw Error("it has more than 512 MiB");
  }
  return bytes;
}

/// Puts the file's name before the reason.
template <typename Action>
auto with_name(const std::string& path, Action action) {
  try {
    return action();
  } catch (const Error& error) {
    throw Error(path + ": " + error.what());
  }
}

/// Appends the first `count` items of so many numbers each.
template <typename T>
void append(std::vector<T>& all, const std::vector<T>& more, std::size_t count, std::size_t size) {
  const auto end = more.begin() + static_cast<std::ptrdiff_t>(std::min(count * size, more.size()));
  all.insert(all.end(), more.begin(), end);
}

void add_file(Inputs& inputs, const std::string& path, const Predictor& predictor,
              std::size_t limit) {
  File file(path);
  const auto first = file.next();
  const NextPart next = parts_of(file, first);
  if (!is_idx(first)) {
    // what is no image is refused by its first bytes
    const auto pixels =
        is_image(first) ? predictor.decode(read_image(next)) : predictor.decode(first);
    inputs.items.pixels.insert(inputs.items.pixels.end(), pixels.begin(), pixels.end());
    inputs.names.push_back(path);
    return;
  }
  const Input& input = predictor.info().input;
  const std::size_t size = input.item_size();
  const Items found = decode_idx(next, input);
  const std::size_t given = std::max(found.pixels.size(), found.images.size()) / size;
  const std::size_t count = limit == 0 ? given : std::min(limit, given);
  if (count == 0) throw Error("holds no images");
  append(inputs.items.pixels, found.pixels, count, size);
  append(inputs.items.images, found.images, count, size);
  for (std::size_t i = 0; i < count; ++i) {
    inputs.names.push_back(path + '[' + std::to_string(i) + ']');
  }
}

Inputs read_inputs(const Options& options, const Predictor& predictor) {
  Inputs inputs;
  for (const std::string& path : options.files) {
    with_name(path, [&] { add_file(inputs, path, predictor, options.limit); });
  }
  return inputs;
}

std::vector<std::uint32_t> read_labels(const Options& options, std::size_t images) {
  const std::string& path = *options.labels;
  if (options.limit != 0 && options.files.size() > 1) {
    throw Error("--labels with --limit is for a single IDX file, " +
                std::to_string(options.files.size()) + " files given");
  }
  auto labels = with_name(path, [&] {
    File file(path);
    return decode_idx_labels(parts_of(file, {}));
  });
  if (images == options.limit && labels.size() > images) labels.resize(images);
  if (labels.size() != images) {
    throw Error(path + ": " + std::to_string(labels.size()) + " labels for " +
                std::to_string(images) + " images");
  }
  return labels;
}

/// A line on the terminal, if stderr is one, while a long input is worked on.
class Progress {
 public:
  explicit Progress(std::size_t total) : total_(total), shown_(isatty(STDERR_FILENO) == 1) {}
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress() {
    if (shown_) std::fputs("\r\033[K", stderr);
  }
  void show(std::size_t done) const {
    if (shown_) std::fprintf(stderr, "\r%zu of %zu images", done, total_);
  }

 private:
  std::size_t total_;
  bool shown_;
};

Outputs run_batch(const Predictor& predictor, const Items& items, std::size_t start,
                  std::size_t count) {
  const std::size_t size = predictor.info().input.item_size();
  if (items.images.empty()) {
    return predictor.run(std::span(items.pixels).subspan(start * size, count * size));
  }
  return predictor.run(std::span(items.images).subspan(start * size, count * size));
}

Outputs run_all(const Predictor& predictor, const Inputs& inputs, std::size_t batch_size) {
  const Progress progress(inputs.names.size());
  Outputs all;
  for (std::size_t start = 0; start < inputs.names.size(); start += batch_size) {
    progress.show(start);
    const std::size_t count = std::min(batch_size, inputs.names.size() - start);
    all.append(run_batch(predictor, inputs.items, start, count));
  }
  return all;
}

void run_benchmark(const Options& options, const Backend& backend, const Inputs& inputs,
                   std::size_t batch_size) {
  const std::size_t given = inputs.names.size();
  if (given < batch_size) {
    throw Error("a batch of " + std::to_string(batch_size) + " needs as many images, " +
                std::to_string(given) + " given");
  }
  const auto call = [&] { (void)run_batch(*backend.predictor, inputs.items, 0, batch_size); };
  print_measured(measure(call, options.repetitions), batch_size, backend.description,
                 options.format);
}

/// Refuses what the model can't do: now, not after minutes of work.
void check_options(const Options& options, const ModelInfo& model) {
  if (options.batch_size && *options.batch_size > model.max_batch) {
    throw Error("--batch-size " + std::to_string(*options.batch_size) + ": the model takes 1 to " +
                std::to_string(model.max_batch));
  }
  if (options.top > model.labels.size()) {
    throw Error("--top " + std::to_string(options.top) + ": there are " +
                std::to_string(model.labels.size()) + " classes");
  }
}

void parse(CLI::App& app, int argc, char** argv, const std::function<void()>& action) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help) {
    app.exit(help);
    return;
  }
  action();
}

/// One line, whatever a file's name has in it.
int fail(const std::string& reason) {
  std::cerr << "error: " << printable(reason) << '\n';
  return 2;
}

}  // namespace

void add_options(CLI::App& app, Options& options) {
  app.get_formatter()->column_width(30);
  app.add_option("files", options.files,
                 "PNG, JPEG, or IDX plain or gzipped; - is the standard input")
      ->required()
      ->type_name("");
  app.add_option("--batch-size", options.batch_size,
                 "images in one call, up to what the model takes")
      ->check(CLI::Range(1, 1'000'000'000))
      ->type_name("N")
      ->default_str(std::to_string(usual_batch));
  app.add_option("--top", options.top, "classes to show for each image, best first")
      ->check(CLI::Range(1, 1'000'000'000))
      ->type_name("K")
      ->capture_default_str();
  app.add_option("--limit", options.limit, "only the first N images of every IDX file")
      ->check(CLI::Range(1, 1'000'000'000))
      ->type_name("N");
  app.add_option("--format", options.format,
                 "table, json, csv, or f32: raw logits, row by row, little-endian")
      ->check(CLI::IsMember({"table", "json", "csv", "f32"}))
      ->type_name("F")
      ->capture_default_str();
  app.add_option("--labels", options.labels,
                 "IDX file of the true classes: the accuracy too, on stderr but for a table")
      ->type_name("FILE");
  app.add_flag("--benchmark", options.benchmark,
               "time calls on the first batch instead: median, p95, images per second");
  app.add_option("--repetitions", options.repetitions, "timed calls of the benchmark")
      ->check(CLI::Range(1, 1'000'000))
      ->type_name("N")
      ->capture_default_str();
}

void classify_files(const Options& options, const std::function<Backend()>& open) {
  if (options.benchmark && options.format != "table" && options.format != "json") {
    throw Error("--benchmark prints a table or json, not " + options.format);
  }
  const Backend backend = open();
  const Predictor& predictor = *backend.predictor;
  const ModelInfo& model = predictor.info();
  check_options(options, model);
  const std::size_t batch_size =
      options.batch_size.value_or(std::min(usual_batch, model.max_batch));
  const Inputs inputs = read_inputs(options, predictor);
  std::vector<std::uint32_t> labels;
  if (options.labels) labels = read_labels(options, inputs.names.size());
  if (options.benchmark) {
    run_benchmark(options, backend, inputs, batch_size);
    return;
  }
  const Outputs outputs = run_all(predictor, inputs, batch_size);
  const auto top = top_predictions(outputs.probabilities, model.labels, options.top);
  print(options.format, inputs.names, top, outputs.logits);
  if (options.labels) print_accuracy(options.format, top, labels);
}

int run(CLI::App& app, int argc, char** argv, const std::function<void()>& action) {
  // else the next file or socket that is opened would be the standard output
  if (fcntl(STDOUT_FILENO, F_GETFD) == -1) {
    return fail("the standard output is closed; redirect it to a file or to /dev/null");
  }
  std::signal(SIGXFSZ, SIG_IGN);  // a limit of files' size is then an error of writing
  app.footer("Exit codes: 0 fine, 2 wrong usage or input, with the reason in one line.");
  try {
    parse(app, argc, argv, action);
    std::cout.flush();
    if (!std::cout || std::fflush(stdout) != 0)
      throw Error("can't write the results to the standard output");
    return 0;
  } catch (const CLI::ParseError& error) {
    return fail(error.what() + ("; see " + app.get_name()) + " --help");
  } catch (const std::bad_alloc&) {
    return fail("not enough memory for these files");
  } catch (const std::exception& error) {
    return fail(error.what());
  }
}

}  // namespace nin::tool
