#include "inflater.h"

#include <algorithm>
#include <new>

#include "nin/error.h"

namespace nin::tool {
namespace {

constexpr std::size_t piece = std::size_t{1} << 30;  // zlib counts in 32 bits

void require_success(int status, const z_stream& stream) {
  if (status == Z_MEM_ERROR) throw std::bad_alloc();
  if (status == Z_NEED_DICT) throw Error("it needs a dictionary");
  if (status < 0 && status != Z_BUF_ERROR) {
    throw Error(stream.msg != nullptr ? stream.msg : "zlib can't be used");
  }
}

}  // namespace

Inflater::Inflater() {
  constexpr int gzip = MAX_WBITS + 16;
  require_success(inflateInit2(&stream_, gzip), stream_);
}

Inflater::~Inflater() { inflateEnd(&stream_); }

std::size_t Inflater::read(std::span<std::uint8_t> output) {
  std::size_t done = 0;
  int status = Z_OK;
  while (done < output.size() && !ended_ && status != Z_BUF_ERROR) {
    const std::size_t in = std::min(input_.size(), piece);
    const std::size_t out = std::min(output.size() - done, piece);
    stream_.next_in = const_cast<Bytef*>(input_.data());  // zlib reads it only
    stream_.avail_in = static_cast<uInt>(in);
    stream_.next_out = output.data() + done;
    stream_.avail_out = static_cast<uInt>(out);
    status = inflate(&stream_, Z_NO_FLUSH);
    require_success(status, stream_);
    input_ = input_.subspan(in - stream_.avail_in);
    done += out - stream_.avail_out;
    ended_ = status == Z_STREAM_END;
  }
  return done;
}

void Inflater::restart(Bytes input) {
  require_success(inflateReset(&stream_), stream_);
  input_ = input;
  ended_ = false;
}

}  // namespace nin::tool
