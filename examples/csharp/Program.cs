// Inspects images with a folder that `flawsmith export MODEL --to onnx` has written; there is no Python in it.
//
//   dotnet run -- FOLDER photo.png other.png     a line each: verdict, score, image, strangest place; --check: test vectors
//
// Not compiled by the project's tests, which have no .NET SDK: the same steps as in ../cpp/inspect.cpp, which they run.
using System.Text.Json;
using Microsoft.ML.OnnxRuntime;
using Microsoft.ML.OnnxRuntime.Tensors;
using SixLabors.ImageSharp.PixelFormats;

if (args.Length < 2) return Fail("usage: inspect FOLDER image... | --check");
var facts = JsonDocument.Parse(File.ReadAllText(Path.Combine(args[0], "decision.json"))).RootElement;
var geometry = facts.GetProperty("geometry");
var limits = facts.GetProperty("decision");
if (facts.GetProperty("version").GetInt32() > 1 || limits.GetProperty("decides").GetString() != "score"
    || geometry.GetProperty("region").ValueKind != JsonValueKind.Null || facts.GetProperty("tiling").ValueKind != JsonValueKind.Null)
    return Fail("this example decides by the score of whole images; decision.json asks for more");
using var session = new InferenceSession(Path.Combine(args[0], facts.GetProperty("graph").GetProperty("file").GetString()!));
int[] size = geometry.GetProperty("size").EnumerateArray().Select(side => side.GetInt32()).ToArray();

bool check = args[1] == "--check";
var vectors = facts.GetProperty("test_vectors").EnumerateArray().ToArray();
var paths = check ? vectors.Select(vector => Path.Combine(args[0], vector.GetProperty("image").GetString()!)) : args.Skip(1);
int wrong = 0, number = 0;
foreach (var path in paths)
{
    float[] input = Prepare(geometry, Rgb.Load(path));
    var tensor = new DenseTensor<float>(input, new[] { 1, 3, size[0], size[1] });
    using var results = session.Run(new[] { NamedOnnxValue.CreateFromTensor("image", tensor) });
    float[] map = results.First(result => result.Name == "map").AsEnumerable<float>().ToArray();
    float score = results.First(result => result.Name == "score").AsEnumerable<float>().First();
    var review = limits.GetProperty("review_limit");
    string verdict = score > limits.GetProperty("limit").GetDouble() ? "reject"
        : review.ValueKind != JsonValueKind.Null && score > review.GetDouble() ? "review" : "pass";
    int peak = Array.IndexOf(map, map.Max());
    Console.WriteLine($"{verdict}  {score}  {path}  {(peak % size[1] + 0.5) / size[1]:F3} {(peak / size[1] + 0.5) / size[0]:F3}");
    if (!check) continue;
    var (vector, tolerance) = (vectors[number++], facts.GetProperty("tolerance"));
    double reference = tolerance.GetProperty("reference_size").GetDouble();
    double factor = Math.Max(1, Math.Max(Math.Abs(score), Math.Abs(map[peak])) / reference);
    bool right = vector.GetProperty("verdict").GetString() == verdict
        && Difference(input, Floats(vector.GetProperty("input"))) < 1e-5
        && Math.Abs(score - vector.GetProperty("score").GetDouble()) <= factor * tolerance.GetProperty("score").GetDouble()
        && Difference(map, Floats(vector.GetProperty("map"))) <= factor * tolerance.GetProperty("map").GetDouble();
    wrong += right ? 0 : 1;
}
if (check) Console.WriteLine($"{vectors.Length - wrong} of {vectors.Length} test vectors come out");
return wrong == 0 ? 0 : 1;

float[] Floats(JsonElement name)
{
    byte[] bytes = File.ReadAllBytes(Path.Combine(args[0], name.GetString()!));
    var values = new float[bytes.Length / 4];
    Buffer.BlockCopy(bytes, 0, values, 0, bytes.Length);
    return values;
}

static double Difference(float[] a, float[] b) =>
    a.Length != b.Length ? double.PositiveInfinity : a.Zip(b, (x, y) => Math.Abs((double)x - y)).DefaultIfEmpty(0).Max();

static int Fail(string why) { Console.Error.WriteLine($"error: {why}"); return 2; }

static Axis AxisOf(JsonElement geometry, int which, int height, int width)
{
    int[] sizes = geometry.GetProperty("size").EnumerateArray().Select(side => side.GetInt32()).ToArray();
    int size = sizes[which], length = which == 0 ? height : width;
    switch (geometry.GetProperty("policy").GetString())
    {
        case "crop":
            var resize = geometry.GetProperty("resize");
            long side = resize.ValueKind == JsonValueKind.Null ? sizes.Max() : resize.GetInt32();
            int resized = (int)(side * length / Math.Min(height, width));
            return new Axis(length, resized, (int)Math.Round((resized - size) / 2.0), size, 0); // half to even
        case "letterbox":
            double scale = Math.Min((double)sizes[0] / height, (double)sizes[1] / width);
            int fitted = Math.Min(Math.Max(1, (int)Math.Round(length * scale)), size);
            return new Axis(length, fitted, 0, fitted, (size - fitted) / 2);
        default:
            return new Axis(length, size, 0, size, 0);
    }
}

static float[] Prepare(JsonElement geometry, Rgb image)
{
    Axis rows = AxisOf(geometry, 0, image.Height, image.Width), columns = AxisOf(geometry, 1, image.Height, image.Width);
    string filter = geometry.GetProperty("interpolation").GetString()!;
    Rgb small = image.Resample(true, columns, filter).Resample(false, rows, filter);
    int height = geometry.GetProperty("size")[0].GetInt32(), width = geometry.GetProperty("size")[1].GetInt32();
    var input = new float[3 * height * width];
    for (int c = 0; c < 3; c++)
    {
        double mean = geometry.GetProperty("mean")[c].GetDouble(), std = geometry.GetProperty("std")[c].GetDouble();
        for (int y = 0; y < small.Height; y++)
            for (int x = 0; x < small.Width; x++)
                input[(c * height + y + rows.Padding) * width + x + columns.Padding] =
                    (float)((small.Bytes[3 * (y * small.Width + x) + c] / 255.0 - mean) / std);
    }
    return input;
}

// The image is resized, Length of it is cut out from Start on and put at Padding of the input.
record Axis(int Original, int Resized, int Start, int Length, int Padding);

record Rgb(int Height, int Width, byte[] Bytes)
{
    public static Rgb Load(string path)
    {
        using var image = SixLabors.ImageSharp.Image.Load<Rgb24>(path);
        var bytes = new byte[3 * image.Width * image.Height];
        image.CopyPixelDataTo(bytes);
        return new Rgb(image.Height, image.Width, bytes);
    }

    static double Sinc(double x) => x == 0 ? 1 : Math.Sin(x * Math.PI) / (x * Math.PI);

    static double Weight(string filter, double x)
    {
        if (filter == "lanczos") return x >= -3 && x < 3 ? Sinc(x) * Sinc(x / 3) : 0;
        x = Math.Abs(x);
        if (filter == "bicubic") return x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
        return Math.Max(0, 1 - x);
    }

    // One axis, antialiased as Pillow does it in 8 bits: integer weights, the result rounded.
    public Rgb Resample(bool columns, Axis axis, string filter)
    {
        int height = columns ? Height : axis.Length, width = columns ? axis.Length : Width;
        var bytes = new byte[3 * height * width];
        double scale = (double)axis.Original / axis.Resized, wide = Math.Max(scale, 1);
        double support = (filter == "lanczos" ? 3 : filter == "bicubic" ? 2 : 1) * wide;
        for (int i = 0; i < axis.Length; i++)
        {
            double centre = (axis.Start + i + 0.5) * scale;
            int first = Math.Max(0, (int)(centre - support + 0.5)), end = Math.Min(axis.Original, (int)(centre + support + 0.5));
            double[] weights = Enumerable.Range(first, end - first).Select(x => Weight(filter, (x - centre + 0.5) * (1 / wide))).ToArray();
            double sum = weights.Sum();
            int[] whole = weights.Select(w => (int)(w / sum * (1 << 22) + (w < 0 ? -0.5 : 0.5))).ToArray();
            for (int line = 0; line < (columns ? Height : Width); line++)
                for (int c = 0; c < 3; c++)
                {
                    long total = 1 << 21;
                    for (int x = first; x < end; x++)
                        total += (long)whole[x - first] * Bytes[3 * (columns ? line * Width + x : x * Width + line) + c];
                    bytes[3 * (columns ? line * width + i : i * width + line) + c] = (byte)Math.Clamp(total >> 22, 0L, 255L);
                }
        }
        return new Rgb(height, width, bytes);
    }
}
