#include "metadata.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "nin/error.h"

namespace {

using nlohmann::json;
using Texts = std::map<std::string, std::string>;

std::string base64(const std::vector<std::uint8_t>& bytes) {
  const std::string alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (std::size_t at = 0; at < bytes.size(); at += 3) {
    std::uint32_t bits = 0;
    for (std::size_t i = at; i < at + 3; ++i) bits = bits << 8 | (i < bytes.size() ? bytes[i] : 0U);
    for (int shift = 18; shift >= 0; shift -= 6) text += alphabet[bits >> shift & 63];
  }
  const std::size_t missing = (3 - bytes.size() % 3) % 3;
  return text.replace(text.size() - missing, missing, missing, '=');
}

std::string base64(const std::vector<double>& values) {
  std::vector<std::uint8_t> bytes(values.size() * sizeof(double));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return base64(bytes);
}

json output(const char* name) {
  return {{"name", name}, {"dtype", "float32"}, {"shape", {"batch", 2}}};
}

Texts texts_of(const json& contract, const json& golden) {
  return {{"contract", contract.dump()},
          {"labels", R"(["left", "右, \"x\""])"},
          {"golden", golden.dump()},
          {"weights_sha256", "abc"}};
}

/// What an export of a classifier with two classes and one golden image carries: RGB, not square.
Texts good() {
  const json contract = {
      {"graph", "arrows"},
      {"kind", "classifier"},
      {"input", {{"name", "pixels"}, {"dtype", "uint8"}, {"shape", {"batch", 2, 4, 3}}}},
      {"outputs", {output("logits"), output("probabilities")}},
      {"max_batch", 7},
      {"files",
       {{"mode", "rgb"},
        {"resize", "crop"},
        {"height", 2},
        {"width", 4},
        {"shorter_side", 5},
        {"filter", "bilinear"}}}};
  std::vector<std::uint8_t> pixels(24, 0);
  pixels.back() = 255;
  const json golden = {{"inputs", base64(pixels)},
                       {"shape", {1, 2, 4, 3}},
                       {"outputs",
                        {{"logits", base64(std::vector{1.5, -1.0})},
                         {"probabilities", base64(std::vector{0.9, 0.1})}}},
                       {"budget", {{"logits", 1e-5}, {"probabilities", 1e-6}}}};
  return texts_of(contract, golden);
}

/// The same of its network: float images of three channels.
Texts good_network() {
  const json contract = {
      {"graph", "arrows_network"},
      {"kind", "network"},
      {"input", {{"name", "image"}, {"dtype", "float32"}, {"shape", {"batch", 3, 1, 2}}}},
      {"outputs", {output("logits")}},
      {"max_batch", 64},
      {"image", {{"mean", {0.0, 0.5, 0.25}}, {"std", {1.0, 0.5, 2.0}}}}};
  const json golden = {{"inputs", base64(std::vector<std::uint8_t>{0, 255, 0, 255, 0, 255})},
                       {"shape", {1, 3, 1, 2}},
                       {"outputs", {{"logits", base64(std::vector{1.5, -1.0})}}},
                       {"budget", {{"logits", 1e-5}}}};
  return texts_of(contract, golden);
}

std::string error_of(const Texts& texts) {
  try {
    (void)nin::parse_metadata(texts);
  } catch (const nin::Error& error) {
    return error.what();
  }
  return "";
}

/// The message for `texts` with one place of one of them replaced.
std::string error_with(const char* key, const char* pointer, const json& value,
                       Texts texts = good()) {
  json data = json::parse(texts.at(key));
  data[json::json_pointer(pointer)] = value;
  texts[key] = data.dump();
  return error_of(texts);
}

void expect_part(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "found: " << text;
  EXPECT_EQ(text.find('\n'), std::string::npos) << "found: " << text;
}

TEST(Metadata, OfAClassifierIsRead) {
  using enum nin::Decoding::Mode;
  using enum nin::Decoding::Resize;
  using enum nin::Decoding::Filter;
  const nin::Metadata metadata = nin::parse_metadata(good());
  const nin::ModelInfo& info = metadata.info;
  EXPECT_EQ(info.graph, "arrows");
  EXPECT_EQ(info.input.name, "pixels");
  EXPECT_EQ(info.input.type, nin::ElementType::uint8);
  EXPECT_EQ(info.input.shape, (std::vector<std::size_t>{2, 4, 3}));
  EXPECT_EQ(info.input.item_size(), 24U);
  EXPECT_EQ(info.labels, (std::vector<std::string>{"left", "右, \"x\""}));
  EXPECT_EQ(info.max_batch, 7U);
  EXPECT_EQ(info.decoding, (nin::Decoding{rgb, crop, 2, 4, 5, bilinear}));
  EXPECT_EQ(metadata.outputs, (std::vector<std::string>{"logits", "probabilities"}));
  EXPECT_EQ(metadata.weights_sha256, "abc");
  ASSERT_EQ(metadata.golden.inputs.size(), 24U);
  EXPECT_EQ(metadata.golden.inputs.front(), 0);
  EXPECT_EQ(metadata.golden.inputs.back(), 255);
  EXPECT_EQ(metadata.golden.outputs.at("logits"), (std::vector<double>{1.5, -1}));
  EXPECT_EQ(metadata.golden.budget.at("probabilities"), 1e-6);
}

TEST(Metadata, OfANetworkIsRead) {
  const nin::Metadata metadata = nin::parse_metadata(good_network());
  EXPECT_EQ(metadata.info.input.type, nin::ElementType::float32);
  EXPECT_EQ(metadata.info.input.shape, (std::vector<std::size_t>{3, 1, 2}));
  EXPECT_EQ(metadata.outputs, (std::vector<std::string>{"logits"}));
  EXPECT_FALSE(metadata.info.decoding);
  EXPECT_EQ(nin::normalise(metadata), (std::vector<float>{0, 1, -1, 1, -0.125F, 0.375F}));
}

TEST(Metadata, EveryTextIsNeeded) {
  for (const char* key : nin::metadata_keys) {
    Texts texts = good();
    texts.erase(key);
    EXPECT_NE(error_of(texts).find(std::string("it carries no ") + key), std::string::npos);
    texts[key] = "";
    EXPECT_NE(error_of(texts).find(std::string("it carries no ") + key), std::string::npos);
  }
}

TEST(Metadata, AContractThatMakesNoSenseIsRefused) {
  EXPECT_NE(error_with("contract", "/input/name", ""), "");
  for (const char* place : {"/input/dtype", "/input/shape", "/outputs/1/name", "/outputs/0/dtype",
                            "/max_batch", "/kind", "/files/mode", "/files"}) {
    EXPECT_NE(error_with("contract", place, "other"), "") << place;
    EXPECT_NE(error_with("contract", place, nullptr), "") << place;
  }
  expect_part(error_with("contract", "/kind", "network"),
              "it is a network that takes pixels uint8 (N, 2, 4, 3); a classifier takes uint8");
  expect_part(error_with("contract", "/files/filter", "lanczos"),
              R"(its filter is "lanczos", known are bicubic, bilinear)");
  expect_part(error_with("contract", "/outputs/0/shape/1", 3), "its outputs are ");
  expect_part(error_with("labels", "/2", "middle"), "its outputs are ");
  expect_part(error_with("contract", "/files/width", 5),
              "takes pixels uint8 (N, 2, 4, 3), but decodes files to pixels uint8 (N, 2, 5, 3)");
  expect_part(error_with("contract", "/files/mode", "grey"), "but decodes files to");
  expect_part(error_with("contract", "/files/shorter_side", 0), "a shorter side can't have 0");
  for (const json& count : {json(0), json(-1), json(1.5), json(true), json(1'000'000)}) {
    expect_part(error_with("contract", "/max_batch", count), "its max_batch is ");
    expect_part(error_with("contract", "/input/shape/1", count), "its input's size is ");
  }
}

TEST(Metadata, AnInputOfAnotherFormIsRefused) {
  const std::string expected = "expected uint8 (N, H, W) or (N, H, W, 3), or float32 (N, C, H, W)";
  for (const json& shape : {json{"batch", 2}, json{"batch", 2, 4, 4}, json{"batch", 2, 4, 3, 1},
                            json{"batch", 65535, 65535, 3}}) {
    expect_part(error_with("contract", "/input/shape", shape), expected);
  }
  expect_part(error_with("contract", "/input/shape", {1, 2, 4, 3}), "its input is ");
  for (const json& shape : {json{"batch", 2, 4}, json{"batch", 65535, 65535, 65535}}) {
    expect_part(error_with("contract", "/input/shape", shape, good_network()), expected);
  }
}

TEST(Metadata, ANormalisationThatMakesNoSenseIsRefused) {
  const auto error = [](const char* place, const json& value) {
    return error_with("contract", place, value, good_network());
  };
  expect_part(error("/image/mean", {0.5}), "its mean is [0.5], expected 3 finite numbers");
  expect_part(error("/image/mean/1", 1e300), "expected 3 finite numbers");
  expect_part(error("/image/std/2", 0), "its std is [1.0,0.5,0], expected numbers above 0");
  expect_part(error("/image/std", "x"), "its metadata can't be read");
}

TEST(Metadata, LabelsThatAreNoneAreRefused) {
  Texts texts = good();
  texts["labels"] = R"(["one"])";
  expect_part(error_of(texts), "it has 1 labels, expected 2 to 100000");
  texts["labels"] = json(std::vector<std::string>(100'001, "x")).dump();
  expect_part(error_of(texts), "it has 100001 labels");
  texts["labels"] = R"(["one", ""])";
  expect_part(error_of(texts), "its label 1 is empty");
  texts["labels"] = "[\"one\", \"\xff\"]";
  expect_part(error_of(texts), "its metadata can't be read");
}

TEST(Metadata, DamagedGoldenVectorsAreRefused) {
  expect_part(error_with("golden", "/inputs", "AAAA"),
              "its golden inputs have 4 characters of base64, expected 32 for 24 bytes");
  expect_part(error_with("golden", "/inputs", std::string(32, '*')), "inputs are no base64");
  expect_part(error_with("golden", "/shape/0", 0),
              "number of golden inputs is 0, expected 1 to 32");
  expect_part(error_with("golden", "/shape/0", 1'000'000'000), "expected 1 to 32");
  expect_part(error_with("golden", "/shape", {1, 2, 4}), "expected [1,2,4,3]");
  expect_part(error_with("golden", "/budget/logits", -1), "its budget for logits is -1");
  expect_part(error_with("golden", "/outputs/logits", base64(std::vector{1.0})),
              "its golden logits have 12 characters of base64, expected 24 for 16 bytes");
  expect_part(error_with("golden", "/outputs/logits", base64(std::vector<double>{1.0, NAN})),
              "its golden logits aren't finite numbers");
  EXPECT_NE(error_with("golden", "/outputs/logits", {1.0, 2.0}), "");
}

TEST(Metadata, DeepJsonDoesNotExhaustTheStack) {
  for (const char* key : {"contract", "labels", "golden"}) {
    Texts texts = good();
    texts[key] = std::string(1'000'000, '[') + std::string(1'000'000, ']');
    EXPECT_EQ(error_of(texts), "its JSON is nested too deeply");
  }
}

TEST(Metadata, WhatIsNotJsonOrOfAnotherTypeIsRefused) {
  for (const char* key : {"contract", "labels", "golden"}) {
    for (const char* text : {"{", "nonsense", "[]", "{}", "1e999", "null", "[[[[[["}) {
      Texts texts = good();
      texts[key] = text;
      EXPECT_NE(error_of(texts), "") << key << " is " << text;
    }
  }
}

}  // namespace
