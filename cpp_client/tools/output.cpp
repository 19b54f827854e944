#include "output.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <utility>

namespace nin::tool {
namespace {

using Row = std::vector<std::string>;

static_assert(std::endian::native == std::endian::little, "f32 is written as it lies in memory");

template <typename Number>
std::string printed(const char* pattern, Number value) {
  char text[32];
  std::snprintf(text, sizeof text, pattern, value);
  return text;
}

/// How many bytes at the start of a text are one character of UTF-8; 0 if they aren't.
std::size_t character_size(std::string_view text) {
  const auto byte = [text](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned first = byte(0);
  if (first < 0x80) return 1;
  const std::size_t size = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  if (first < 0xC2 || first > 0xF4 || text.size() < size) return 0;
  for (std::size_t i = 1; i < size; ++i) {
    if (byte(i) < 0x80 || byte(i) > 0xBF) return 0;
  }
  const unsigned second = byte(1);
  const bool overlong = (first == 0xE0 && second < 0xA0) || (first == 0xF0 && second < 0x90);
  const bool surrogate = first == 0xED && second > 0x9F;
  return overlong || surrogate || (first == 0xF4 && second > 0x8F) ? 0 : size;
}

/// C0, DEL and C1, of which the last has two bytes.
bool is_control(std::string_view character) {
  const auto first = static_cast<unsigned char>(character[0]);
  const bool c1 = first == 0xC2 && static_cast<unsigned char>(character[1]) < 0xA0;
  return first < ' ' || first == 0x7F || c1;
}

std::string escaped(std::string_view text, bool with_controls) {
  std::string result;
  while (!text.empty()) {
    const std::size_t size = character_size(text);
    const std::string_view character = text.substr(0, std::max(size, std::size_t{1}));
    const bool kept = size > 0 && !(with_controls && is_control(character));
    for (const char c : character) {
      result += kept ? std::string(1, c) : printed("\\x%02x", static_cast<unsigned char>(c));
    }
    text.remove_prefix(character.size());
  }
  return result;
}

/// For data: bytes that aren't UTF-8 become \xNN.
std::string as_utf8(std::string_view text) { return escaped(text, false); }

/// The character's number; it is whole.
char32_t code_point(std::string_view character) {
  if (character.size() == 1) return static_cast<unsigned char>(character[0]);
  char32_t code = static_cast<unsigned char>(character[0]) & (0x7FU >> character.size());
  for (const char c : character.substr(1))
    code = code << 6 | (static_cast<unsigned char>(c) & 0x3F);
  return code;
}

/// How many columns of a terminal a character takes: none if it lies over the one before, two if it
/// is wide, as Chinese is.
std::size_t columns(char32_t code) {
  using Range = std::pair<char32_t, char32_t>;
  constexpr std::array<Range, 6> over = {{{0x0300, 0x036F},
                                          {0x0591, 0x05BD},
                                          {0x064B, 0x065F},
                                          {0x200B, 0x200F},
                                          {0x20D0, 0x20FF},
                                          {0xFE00, 0xFE0F}}};
  constexpr std::array<Range, 8> wide = {{{0x1100, 0x115F},
                                          {0x2E80, 0xA4CF},
                                          {0xAC00, 0xD7A3},
                                          {0xF900, 0xFAFF},
                                          {0xFE30, 0xFE6F},
                                          {0xFF01, 0xFF60},
                                          {0x1F300, 0x1FAFF},
                                          {0x20000, 0x3FFFD}}};
  const auto has = [code](const Range& r) { return code >= r.first && code <= r.second; };
  if (std::ranges::any_of(over, has)) return 0;
  return std::ranges::any_of(wide, has) ? 2 : 1;
}

/// Of a text that is printable.
std::size_t width_of(std::string_view text) {
  std::size_t width = 0;
  while (!text.empty()) {
    const std::size_t size = character_size(text);
    width += columns(code_point(text.substr(0, size)));
    text.remove_prefix(size);
  }
  return width;
}

/// A text for a cell, which ends at a |.
std::string cell(std::string_view text) {
  std::string result;
  for (const char c : printable(text)) result += c == '|' ? "\\|" : std::string(1, c);
  return result;
}

/// Reads well on a terminal and is Markdown too; every second column from the third is a number.
void print_row(const Row& cells, const std::vector<std::size_t>& widths) {
  for (std::size_t i = 0; i < cells.size(); ++i) {
    const std::string space(widths[i] - width_of(cells[i]), ' ');
    const bool number = i >= 2 && i % 2 == 0;
    std::cout << "| " << (number ? space + cells[i] : cells[i] + space) << ' ';
  }
  std::cout << "|\n";
}

void print_rule(const std::vector<std::size_t>& widths) {
  for (std::size_t i = 0; i < widths.size(); ++i) {
    std::cout << '|' << std::string(widths[i] + 1, '-') << (i >= 2 && i % 2 == 0 ? ':' : '-');
  }
  std::cout << "|\n";
}

void print_table(const std::vector<std::string>& names,
                 const std::vector<std::vector<Prediction>>& top) {
  std::vector<Row> rows{{"image"}};
  for (std::size_t k = 1; k <= top.front().size(); ++k) {
    rows[0].push_back(top.front().size() > 1 ? std::to_string(k) + '.' : "prediction");
    rows[0].emplace_back("probability");
  }
  for (std::size_t i = 0; i < names.size(); ++i) {
    rows.push_back({cell(names[i])});
    for (const Prediction& prediction : top[i]) {
      rows.back().push_back(cell(prediction.label));
      rows.back().push_back(printed("%.3f", prediction.probability));
    }
  }
  std::vector<std::size_t> widths(rows[0].size());
  for (const Row& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], width_of(row[i]));
  }
  print_row(rows[0], widths);
  print_rule(widths);
  for (std::size_t i = 1; i < rows.size(); ++i) print_row(rows[i], widths);
}

void print_json(const std::vector<std::string>& names,
                const std::vector<std::vector<Prediction>>& top, const std::vector<float>& logits) {
  const std::size_t classes = logits.size() / names.size();
  auto images = nlohmann::ordered_json::array();
  for (std::size_t i = 0; i < names.size(); ++i) {
    auto predictions = nlohmann::ordered_json::array();
    for (const Prediction& p : top[i]) {
      predictions.push_back(
          {{"index", p.index}, {"label", as_utf8(p.label)}, {"probability", p.probability}});
    }
    const auto row = logits.begin() + static_cast<std::ptrdiff_t>(i * classes);
    const std::vector<float> own(row, row + static_cast<std::ptrdiff_t>(classes));
    images.push_back({{"image", as_utf8(names[i])}, {"predictions", predictions}, {"logits", own}});
  }
  std::cout << images.dump(2) << '\n';
}

std::string quoted(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string result = "\"";
  for (const char c : text) result += c == '"' ? "\"\"" : std::string(1, c);
  return result + '"';
}

void print_csv(const std::vector<std::string>& names,
               const std::vector<std::vector<Prediction>>& top) {
  std::cout << "image,rank,index,label,probability\n";
  for (std::size_t i = 0; i < names.size(); ++i) {
    for (std::size_t k = 0; k < top[i].size(); ++k) {
      const Prediction& p = top[i][k];
      std::cout << quoted(as_utf8(names[i])) << ',' << k + 1 << ',' << p.index << ','
                << quoted(as_utf8(p.label)) << ',' << printed("%.9g", p.probability) << '\n';
    }
  }
}

}  // namespace

std::string printable(std::string_view text) { return escaped(text, true); }

void print(const std::string& format, const std::vector<std::string>& names,
           const std::vector<std::vector<Prediction>>& top, const std::vector<float>& logits) {
  if (format == "f32") {
    std::cout.write(reinterpret_cast<const char*>(logits.data()),
                    static_cast<std::streamsize>(logits.size() * sizeof(float)));
  } else if (format == "json") {
    print_json(names, top, logits);
  } else if (format == "csv") {
    print_csv(names, top);
  } else {
    print_table(names, top);
  }
}

void print_accuracy(const std::string& format, const std::vector<std::vector<Prediction>>& top,
                    const std::vector<std::uint32_t>& labels) {
  std::size_t right = 0;
  for (std::size_t i = 0; i < labels.size(); ++i) right += top[i].front().index == labels[i];
  const double share = static_cast<double>(right) / static_cast<double>(labels.size());
  (format == "table" ? std::cout : std::cerr) << "accuracy " << printed("%.4f", share) << ", "
                                              << right << " of " << labels.size() << " images\n";
}

}  // namespace nin::tool
