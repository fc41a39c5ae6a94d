// The reader of files against crafted headers and tensors, through the public interface only.
//
//   test_file_headers GOLDEN    GOLDEN is the folder tests/golden
#include <cstdint>
#include <string>
#include <vector>

#include "check.hpp"
#include "diba/diba.hpp"
#include "file_data.hpp"

namespace {

using namespace file_data;

struct Damage {
  const char* from;  // in the header, once
  std::string to;
  const char* expected;  // in the message
};

const std::string kLong(100'000, '[');
const std::string kOnes = [] {
  std::string out;
  for (int i = 0; i < 63; ++i) out += "1,";
  return out;
}();

// Signed again, so that the checksum of the metadata is not what gives them away.
const std::vector<Damage> kMetadata = {
    {R"("format":"diba")", R"("format":"gguf")", "not a diba file: metadata 'format' is 'gguf', expected 'diba'"},
    {R"("format":"diba",)", "", "not a diba file: metadata 'format' is missing"},
    {R"("format_version":"1")", R"("format_version":"2")", "is 2, this diba reads up to 1; upgrade diba"},
    {R"("format_version":"1")", R"("format_version":"0")", "is '0', expected an integer from 1"},
    {R"("alphabet":"binary")", R"("alphabet":"ternary")", "'alphabet' is 'ternary', expected one of binary, sign"},
    {R"("alphabet":"binary",)", "", "metadata 'alphabet' is missing"},
    {R"("rows":"4")", R"("rows":"4.0")", "metadata 'rows' is '4.0', expected an integer"},
    {R"("rows":"4")", R"("rows":"04")", "metadata 'rows' is '04', expected an integer"},
    {R"("rows":"4")", R"("rows":" 4")", "metadata 'rows' is ' 4', expected an integer"},
    {R"("rows":"4")", R"("rows":"")", "metadata 'rows' is '', expected an integer"},
    {R"("rows":"4")", R"("rows":"0")", "metadata 'rows' is '0', expected an integer"},
    {R"("k":"9")", R"("k":"-9")", "metadata 'k' is '-9', expected an integer from 1 to 1099511627776"},
    {R"("k":"9")", R"("k":"-0")", "metadata 'k' is '-0', expected an integer"},
    {R"("k":"9")", R"("k":"9999999999999999999")", "metadata 'k' is '9999999999999999999', expected an integer"},
    {R"("k":"9")", R"("k":"99999999999999999999")", "metadata 'k' is '99999999999999999999', expected an integer"},
    {R"("k":"9")", R"("k":"10")", "tensor 'b2' has shape (9, 2), expected (10, 2) from metadata rows, cols, k"},
    {R"("cols":"11")", R"("cols":"1099511627776")", "tensor 'b2' has shape (9, 2), expected (9, 137438953472)"},
    {R"("d2_exponent":"-4",)", "", "metadata 'd2_exponent' is missing"},
    {R"("d2_exponent":"-4")", R"("d2_exponent":"128")", "'d2_exponent' is '128', expected an integer from -149 to 127"},
    {R"("crc32_b2":"45ceaf83",)", "", "metadata 'crc32_b2' is missing"},
    {R"("crc32_b2":"45ceaf83")", R"("crc32_b2":"45CEAF83")", "'b2' is damaged: its CRC-32 is 45ceaf83, expected '45CE"},
    {R"(,"written_by":"diba 0.1.0")", "", "metadata 'written_by' is missing"},
};

const std::vector<Damage> kTensors = {
    {R"("d2":{"dtype":"F16")", R"("d2":{"dtype":"I16")", "tensor 'd2' has dtype 'I16', expected F16 or F32"},
    {R"("d2":{"dtype":"F16")", R"("d2":{"dtype":"F64")",
     "tensor 'd2' has 18 bytes, which differ from its shape and dtype"},
    {R"("b1":{"dtype":"U8")", R"("b1":{"dtype":"I8")", "tensor 'b1' has dtype 'I8', expected U8"},
    {R"("d2":)", R"("d4":)", "tensor 'd4' is unexpected; a diba file has b1, b2, d1, d2, d3 only"},
    {R"("d1":{"dtype":"F16","shape":[4],"data_offsets":[0,8]},)", "", "overlap or leave gaps"},
    {R"("d1":{"dtype":"F16")", R"("d1":{"dtype":"F32")", "tensor 'd1' has 8 bytes, which differ from its shape"},
    {R"("data_offsets":[48,56])", R"("data_offsets":[48,55])", "tensor 'b1' has 7 bytes, which differ from its shape"},
    {R"("shape":[4,2])", R"("shape":[8])", "tensor 'b1' has shape (8), expected (4, 2)"},
    {R"("shape":[4,2])", R"("shape":[4,2,1])", "tensor 'b1' has shape (4, 2, 1), expected (4, 2)"},
    {R"("shape":[4,2])", R"("shape":[])", "tensor 'b1' has 8 bytes, which differ from its shape"},
    {R"("shape":[4,2])", R"("shape":[1,1,1,1,1,1,1,4,2])", "tensor 'b1' has shape (1, 1, 1, 1, 1, 1, 1, 4, 2)"},
    {R"("shape":[4,2])", "\"shape\":[" + kOnes + "4,2]", "tensor 'b1': the header entry is damaged"},
    {R"("shape":[4,2])", R"("shape":[-4,2])", "tensor 'b1': the header entry is damaged"},
    {R"("shape":[4,2])", R"("shape":[4.0,2])", "tensor 'b1': the header entry is damaged"},
    {R"("shape":[4,2])", R"("shape":[4e0,2])", "tensor 'b1': the header entry is damaged"},
    {R"("shape":[4,2])", R"("shape":[04,2])", "tensor 'b1': the header entry is damaged"},
    {R"("shape":[4,2])", R"("shape":["4",2])", "tensor 'b1': the header entry is damaged"},
    {R"("shape":[4,2])", R"("shape":[4,2,])", "tensor 'b1': the header entry is damaged"},
    {R"("shape":[4,2])", R"("shape":[18446744073709551616,2])", "tensor 'b1': the header entry is damaged"},
    {R"("shape":[4,2])", R"("shape":)" + kLong, "tensor 'b1': the header entry is damaged"},
    {R"("data_offsets":[48,56])", R"("data_offsets":[48])", "tensor 'b1': the header entry is damaged"},
    {R"("data_offsets":[48,56])", R"("data_offsets":[48,56,57])", "tensor 'b1': the header entry is damaged"},
    {R"("data_offsets":[48,56])", R"("data_offsets":[56,48])", "tensor 'b1': the header entry is damaged"},
    {R"("data_offsets":[48,56])", R"("data_offsets":[48,1000000000000000])", "is cut short"},
    {R"("data_offsets":[48,56])", R"("data_offsets":[48,9999999999999999999])", "is cut short"},
    {R"("data_offsets":[48,56])", R"("data_offsets":[48,10000000000000000000])",
     "tensor 'b1': the header entry is dam"},
    {R"("data_offsets":[48,56])", R"("data_offsets":[47,55])", "overlap or leave gaps"},
    {R"("data_offsets":[48,56])", R"("data_offsets":[56,64])", "overlap or leave gaps"},
    {R"("shape":[4,2])", R"("shape":[4,2],"shape":[4,2])", "tensor 'b1': the header entry is damaged"},
    {R"("shape":[4,2])", R"("shape":[4,2],"more":0)", "tensor 'b1': the header entry is damaged"},
    {R"("shape":[4,2])", R"("shape":[4,2],"more":[[],{}])", "tensor 'b1': the header entry is damaged"},
    {R"("shape":[4,2])", R"("\u0073hape":[4,2])", "tensor 'b1': the header entry is damaged"},
    {R"("b1":{"dtype":"U8")", R"("b1":{"dtype":"U\u0038")", "tensor 'b1': the header entry is damaged"},
    {R"("shape":[4,2])", R"("shape":[-0,2])", "tensor 'b1': the header entry is damaged"},
    {R"("d1":{)", R"("d1":[{)", "tensor 'd1': the header entry is damaged"},
    {R"("d1":{)", R"("d1":{"dtype":"F16","shape":[4],"data_offsets":[0,8]},"d1":{)", "tensor 'd1' is there twice"},
};

const std::vector<Damage> kHeader = {
    {R"({"__metadata__":{)", R"({"__metadata__":[)" + kLong, "metadata is damaged; all its values must be strings"},
    {R"("k":"9")", R"("k":9)", "metadata is damaged; all its values must be strings"},
    {R"("k":"9")", R"("k":"9","k":"9")", "metadata 'k' is there twice, expected once"},
    {R"("d1":{)", R"("__metadata__":{},"d1":{)", "has __metadata__ twice"},
    {R"("d1":{)", R"("a\qb":{)", "it is not JSON"},
    {R"("d1":{)", R"("a\u12":{)", "it is not JSON"},
    {R"("d1":{)", R"("a\ud800":{)", "it is not JSON"},
    {R"("d1":{)", R"("a\ud800\ud800":{)", "it is not JSON"},
    {R"("d1":{)", R"("a\udc00":{)", "it is not JSON"},
    {R"("d1":{)", "\"a\n\":{", "it is not JSON"},
    {R"("d1":{)", "\"a\xff\":{", "it is not JSON"},
    {R"("d1":{)", "\"a\xc0\x80\":{", "it is not JSON"},  // overlong
    {R"("d1":{)", "\"a\xe0\x9f\xbf\":{", "it is not JSON"},
    {R"("d1":{)", "\"a\xf0\x8f\xbf\xbf\":{", "it is not JSON"},
    {R"("d1":{)", "\"a\xed\xa0\x80\":{", "it is not JSON"},      // a surrogate
    {R"("d1":{)", "\"a\xf4\x90\x80\x80\":{", "it is not JSON"},  // past U+10FFFF
    {R"("d1":{)", R"("d1" {)", "it is not JSON"},
    {R"("d1":{)", R"(d1:{)", "it is not JSON"},
    {R"([56,74]}})", R"([56,74]},})", "it is not JSON"},
    {R"([56,74]}})", R"([56,74]}}x)", "it is not JSON"},
    {R"([56,74]}})", R"([56,74]})", "it is not JSON"},
    {R"([56,74]}})", "[56,74]}}" + kLong, "it is not JSON"},
    {R"([56,74]}})", std::string("[56,74]}}\0", 10), "it is not JSON"},
};

void test_damages(const File& file, const std::vector<Damage>& damages, bool sign_again) {
  for (const Damage& damage : damages) {
    const File changed = file.with(damage.from, damage.to);
    const std::string found = problem((sign_again ? changed.signed_again() : changed).bytes());
    CHECK_IN(found.rfind("the file: ", 0) == 0 && found.find(damage.expected) != std::string::npos,
             std::string(damage.from) + " -> " + damage.to.substr(0, 60) + ": " + found);
    CHECK_IN(found.size() < 400, found);
  }
}

// Other ways to write the same header.
void test_equal_headers(const File& file, const Factorization& good) {
  const std::string d1 = R"("d1":{"dtype":"F16","shape":[4],"data_offsets":[0,8]},)";
  const std::vector<File> equal = {
      file.with(R"("d1":{)", "\t\"d1\" :\r\n{ "),
      file.with("[4,2]", "[ 4 , 2 ]"),
      file.with(R"("d1":{)", R"("\u0064\u0031":{)"),
      file.with(d1, "").with(R"([56,74]}})", R"([56,74]},)" + d1.substr(0, d1.size() - 1) + "}"),
      file.with(R"("shape":[4],"data_offsets":[0,8])", R"("data_offsets":[0,8],"shape":[4])"),
      // More metadata, in UTF-8; a checksum sees what escapes stand for.
      file.with(R"("k":"9")", "\"\xc3\xa9\xf0\x9d\x84\x9e\":\"1\",\"k\":\"9\"").signed_again(),
      file.with(R"("k":"9")", "\"\xc3\xa9\xf0\x9d\x84\x9e\":\"1\",\"k\":\"9\"")
          .signed_again()
          .with("\xc3\xa9\xf0\x9d\x84\x9e", R"(\u00E9\ud834\udd1e)"),
  };
  for (const File& other : equal) {
    CHECK_IN(problem(other.bytes()).empty(), problem(other.bytes()));
    if (problem(other.bytes()).empty()) CHECK(same(parse(other.bytes()), good));
  }
}

// A byte of a tensor [begin, end), the checksums mended.
File with_byte(const File& file, const char* key, std::size_t begin, std::size_t end, std::size_t at, int value) {
  File changed = file;
  const auto crc = [&] { return File::crc(changed.tensors.substr(begin, end - begin)); };
  const std::string field = std::string("\"crc32_") + key + "\":\"", old = crc();
  changed.tensors[at] = static_cast<char>(value);
  return changed.with(field + old, field + crc()).signed_again();
}

void test_missing_tensor(const File& file) {
  File changed = file.with(R"(,"b2":{"dtype":"U8","shape":[9,2],"data_offsets":[56,74]})", "");
  changed.tensors.resize(56);
  CHECK(problem(changed.bytes()) == "the file: tensor 'b2' is missing");
}

// Numbers that no checksum forbids.
void test_crafted_tensors(const File& file) {
  for (const int high : {0x7C, 0xFC, 0x7E, 0xFE})  // infinities and NaN, in the first entry of d1
    CHECK(problem(with_byte(file, "d1", 0, 8, 1, high).bytes()) ==
          "the file: tensor 'd1' has NaN or infinite entries, expected finite numbers");
  for (int bit = 3; bit < 8; ++bit) {  // of 11 columns; the last row of b2 ends in 5
    CHECK(problem(with_byte(file, "b2", 56, 74, 73, 5 | 1 << bit).bytes()) ==
          "the file: tensor 'b2' has ones past its last column, expected zeros");
  }
  CHECK(problem(with_byte(file, "b2", 56, 74, 73, 4).bytes()).empty());
  // The last entry of d1 becomes the smallest float16: 2^1 2^-24. Its row of B1 ends in the only one, d2 there is 2^-4.
  const Factorization small = parse(with_byte(file, "d1", 0, 8, 6, 1).bytes());
  CHECK(multiply(small, column(11, 0), exactly())[3] == 0x1p-23F * 0x1p-4F * 1024.0F);
}

void test_exponents(const File& binary, const File& sign) {
  const auto changed = [](const File& file, const std::string& from, const std::string& to) {
    return problem(file.with("_exponent\":\"" + from, "_exponent\":\"" + to).signed_again().bytes());
  };
  CHECK(problem(sign.with(R"("d1_exponent":"0")", R"("d1_exponent":"1")").signed_again().bytes())
            .find("'d1_exponent' is 1, expected 0 with float32 diagonals") != std::string::npos);
  // The largest entry of d3 is 2047 * 2^-10, and float32 holds that times 2^127, but no entry of 2.5 times that.
  CHECK(changed(binary, "10", "127").empty());
  CHECK(changed(binary, "10", "-149").empty());
  const File large = with_byte(binary, "d3", 26, 48, 27, 0x41);  // its first entry, 1, becomes 2.5
  CHECK(changed(large, "10", "126").empty());
  CHECK(changed(large, "10", "127") == "the file: tensor 'd3' leaves float32's range with metadata 'd3_exponent' 127");
}

// Claims far beyond the file are refused before anything of their size is asked for.
void test_huge_claims(const File& file) {
  const auto header = [](const std::string& text, std::uint64_t length) {
    return problem(file_data::little_endian(length) + text);
  };
  for (const std::uint64_t length : {std::uint64_t{100'000'001}, std::uint64_t{1} << 40, ~std::uint64_t{0}})
    CHECK(header("{}", length) == "the file: is not a safetensors file (it does not begin with a header)");
  CHECK(header("{}", 100'000'000) == "the file: is cut short: it has 10 bytes, its header announces 100000008");
  const std::string blanks(1 << 20, ' ');  // with two more bytes: one too many, and just enough
  CHECK(header("{}" + blanks, blanks.size() + 2)
            .find("is not a diba file: its header has 1048578 bytes, expected up to") != std::string::npos);
  CHECK(header("{}" + blanks.substr(2), blanks.size()).find("metadata 'format' is missing") != std::string::npos);
  CHECK(header("{}", 2).find("metadata 'format' is missing") != std::string::npos);
  CHECK(header("[]", 2) == "the file: is not a safetensors file (it does not begin with a header)");
  CHECK(header("", 0) == "the file: is not a safetensors file (it does not begin with a header)");
  // rows * ceil(k / 8) = 2^64 would be 0 in 64 bits, and so would the size of b1.
  const File overflowing = file.with(R"("rows":"4")", R"("rows":"1099511627776")")
                               .with(R"("k":"9")", R"("k":"134217728")")
                               .with("[4]", "[1099511627776]")
                               .with("[9]", "[134217728]")
                               .with("[9,2]", "[134217728,2]")
                               .with("[4,2]", "[1099511627776,16777216]")
                               .with("[48,56]", "[48,48]");
  CHECK(problem(overflowing.signed_again().bytes()).find("tensor 'b1' has 0 bytes") != std::string::npos);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const Bytes data = read(std::string(argv[1]) + "/binary.safetensors");
  const File file(data);
  test_damages(file, kMetadata, true);
  test_damages(file, kTensors, false);
  test_damages(file, kHeader, false);
  test_equal_headers(file, parse(data));
  test_missing_tensor(file);
  test_crafted_tensors(file);
  test_exponents(file, File(read(std::string(argv[1]) + "/sign.safetensors")));
  test_huge_claims(file);
  return check::done();
}
