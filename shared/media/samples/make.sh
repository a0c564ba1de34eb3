#!/bin/sh
# Makes the sample files of this package, and the variants in ../testdata that only the tests of package media want,
# from nothing but ffmpeg's own test sources.
#
#   sh make.sh
#
# Needs ffmpeg with libx264, libvpx, libopus, libvorbis, libmp3lame and libwebp. Output is bit-exact for one ffmpeg build;
# another build may choose other bits for the same picture. The files in the repository came from ffmpeg 5.1.
set -eu
cd "$(dirname "$0")"

ff() { ffmpeg -nostdin -y -v error "$@"; }

# Tags, encoder versions and threads would make two runs differ.
exact='-map_metadata -1 -fflags +bitexact -flags:v +bitexact -flags:a +bitexact -threads 1'

# Each file has a picture size and a tone of its own, so that no two share their bytes.
picture() { echo "testsrc=size=$1:rate=${2:-12}:duration=${3:-2}"; }
tone() { echo "sine=frequency=$1:sample_rate=44100:duration=${2:-2}"; }

h264='-c:v libx264 -preset veryslow -crf 30 -pix_fmt yuv420p'
aac='-c:a aac -b:a 32k -ac 1'

# Good ones.
ff -f lavfi -i "$(picture 160x120)" -f lavfi -i "$(tone 440)" $exact $h264 $aac -movflags +faststart video.mp4
ff -f lavfi -i "$(picture 128x96)" -f lavfi -i "$(tone 523)" $exact $h264 $aac -f mov video.mov
ff -f lavfi -i "$(picture 144x96)" -f lavfi -i "$(tone 587)" $exact \
	-c:v libvpx-vp9 -b:v 40k -row-mt 0 -c:a libopus -b:a 16k -ac 1 video.webm
ff -f lavfi -i "$(picture 112x80)" -f lavfi -i "$(tone 659)" $exact $h264 -c:a libvorbis -b:a 32k -ac 1 video.mkv
ff -f lavfi -i "$(tone 698)" $exact -c:a libmp3lame -b:a 32k -ac 1 audio.mp3
ff -f lavfi -i "$(tone 784 1)" $exact -ar 8000 -c:a pcm_s16le audio.wav
ff -f lavfi -i "$(tone 880 1)" $exact -ar 8000 -c:a flac audio.flac
ff -f lavfi -i "$(tone 988 1)" $exact -c:a libvorbis -b:a 32k -ac 1 audio.ogg
ff -f lavfi -i "$(tone 1047)" $exact $aac -f ipod audio.m4a
ff -f lavfi -i "$(picture 120x80 1 1)" $exact -frames:v 1 -q:v 8 -update 1 photo.jpg
ff -f lavfi -i "$(picture 96x64 1 1)" $exact -frames:v 1 -update 1 photo.png

# A recorder that lost power: the index ("moov") stands at the end and never got written.
ff -f lavfi -i "$(picture 152x112)" -f lavfi -i "$(tone 330)" $exact $h264 $aac whole.mp4
head -c "$(($(wc -c <whole.mp4) * 6 / 10))" whole.mp4 >truncated.mp4
# An upload that broke off: the index stands first and is whole, the pictures it points to are not.
ff -f lavfi -i "$(picture 136x104)" -f lavfi -i "$(tone 370)" $exact $h264 $aac -movflags +faststart whole.mp4
head -c "$(($(wc -c <whole.mp4) * 7 / 10))" whole.mp4 >cut.mp4
rm whole.mp4

# Files that are not what their names say.
printf 'This is a text file.\nIts name ends in .mp4, and that makes it no film.\n' >text.mp4
printf '#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:2.0,\nsecret.txt\n#EXT-X-ENDLIST\n' >playlist.mp4
: >empty.mp4

# A good file under the name of an upload in progress.
ff -f lavfi -i "$(picture 104x72)" -f lavfi -i "$(tone 415)" $exact $h264 $aac -movflags +faststart -f mp4 upload.mp4.part

# Variants, for the tests of package media.
mkdir -p ../testdata
cd ../testdata
ff -f lavfi -i "$(picture 96x72)" -f lavfi -i "$(tone 466)" $exact $h264 $aac \
	-movflags frag_keyframe+empty_moov+default_base_moof -g 6 fragmented.mp4
# Through a pipe the writer cannot go back: no sizes, no duration.
ff -f lavfi -i "$(picture 96x80)" -f lavfi -i "$(tone 494)" $exact -c:v libvpx -b:v 40k -c:a libopus -b:a 16k -ac 1 \
	-live 1 -cluster_time_limit 500 -f webm pipe:1 >live.webm
ff -f lavfi -i "$(tone 1109)" $exact -c:a libopus -b:a 16k -ac 1 -f webm audio.webm
ff -f lavfi -i "$(tone 1175)" -f lavfi -i "$(picture 48x32 1 1)" $exact -map 0 -map 1 -c:a libmp3lame -b:a 32k -ac 1 \
	-c:v mjpeg -q:v 20 -disposition:v attached_pic -metadata title=Tone -write_xing 0 tagged.mp3
ff -f lavfi -i "$(tone 1245)" $exact -c:a libmp3lame -q:a 9 -ac 1 vbr.mp3
ff -f lavfi -i "$(tone 1319)" $exact -c:a libopus -b:a 16k -ac 1 tone.opus
ff -f lavfi -i "$(tone 1397)" $exact $aac -f adts tone.aac
ff -f lavfi -i "$(picture 88x72)" -f lavfi -i "$(tone 1480)" $exact -c:v mpeg4 -b:v 40k -c:a libmp3lame -b:a 32k -ac 1 clip.avi
ff -f lavfi -i "$(picture 80x64)" -f lavfi -i "$(tone 1568)" $exact $h264 $aac -f 3gp clip.3gp
for type in gif bmp tiff webp; do
	ff -f lavfi -i "$(picture 40x24 1 1)" $exact -frames:v 1 -update 1 "photo.$type"
done
