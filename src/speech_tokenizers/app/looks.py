# SPDX-License-Identifier: Apache-2.0
"""Style and script of a page. Nothing in them is fetched from elsewhere."""

CSS = """
.st-head, .st-out { --st-quiet: #52525b; }
.dark .st-head { --st-quiet: #b4b4bd; }
.dark .st-out { --st-quiet: #b4b4bd; }
.st-head h1 { margin: 0; font-size: 1.6rem; }
.st-head p { margin: .2rem 0 0; color: var(--st-quiet); }
.st-note {
  padding: .8rem 1rem; border-left: 4px solid #d97706; border-radius: 6px;
  background: color-mix(in srgb, #d97706 14%, transparent); color: var(--body-text-color);
}
.st-group h3, .st-out h3 { margin: 1.2rem 0 .1rem; font-size: 1.05rem; }
.st-group p, .st-out p { margin: 0 0 .6rem; color: var(--st-quiet); }
.st-cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: .9rem; }
.st-card {
  margin: 0; padding: .6rem .7rem; border: 1px solid var(--border-color-primary); border-radius: 8px;
  background: var(--background-fill-primary); min-width: 0;
}
.st-card figcaption { display: flex; flex-wrap: wrap; gap: .1rem .8rem; align-items: baseline; margin-bottom: .4rem; }
.st-card figcaption b { overflow-wrap: anywhere; }
.st-card figcaption span { font-size: .85rem; color: var(--st-quiet); }
.st-strip { position: relative; line-height: 0; }
.st-strip img { width: 100%; height: 84px; object-fit: fill; border-radius: 4px; cursor: pointer; margin: 0; }
.st-strip i {
  position: absolute; top: 0; bottom: 0; left: calc(100% * var(--at, 0)); width: 2px; background: #fff;
  pointer-events: none; opacity: 0;
}
.st-strip.st-on i { opacity: 1; }
.st-card audio { display: block; width: 100%; height: 38px; margin-top: .45rem; color-scheme: light; }
.dark .st-card audio { color-scheme: dark; }
.st-wide { overflow-x: auto; margin-top: .4rem; }
.st-wide img { width: 100%; min-width: 620px; margin: 0; }
.st-words { font-size: 1.35rem; line-height: 2; margin: .6rem 0 !important; }
.st-words button {
  padding: .05em .3em; border: 0; border-radius: 6px; background: none; color: var(--body-text-color); cursor: pointer;
}
.st-words button:hover { background: var(--background-fill-secondary); }
.st-words button.st-lit { background: #fbbf24; color: #111; }
.st-units {
  display: flex; flex-wrap: wrap; gap: 2px; max-height: 15rem; overflow-y: auto; margin: .6rem 0; padding: 3px;
}
.st-units span {
  padding: .12em .3em; border-radius: 4px; color: #111; font-size: .8rem; text-align: center; cursor: pointer;
}
.st-units sub { color: #111; opacity: .8; margin-left: .1em; }
.st-units span.st-lit { outline: 3px solid #f97316; outline-offset: -1px; }
"""

# One listener for all players, also those to come: results replace each other. Events of media do not bubble, so they
# are caught on their way down.
SCRIPT = """<script>
(() => {
  const light = (player) => {
    const strip = player.closest('.st-card')?.querySelector('.st-strip');
    if (strip && player.duration) {
      strip.style.setProperty('--at', player.currentTime / player.duration);
      strip.classList.add('st-on');
    }
    for (const part of player.closest('.st-group')?.querySelectorAll('[data-start]') ?? []) {
      const lit = part.dataset.start <= player.currentTime && player.currentTime < part.dataset.end;
      if (lit && !part.classList.contains('st-lit')) {
        const box = part.closest('.st-units');
        if (box) box.scrollTop = part.offsetTop - box.offsetTop - box.clientHeight / 2;
      }
      part.classList.toggle('st-lit', lit);
    }
  };
  const follow = (player) => {
    if (!player.isConnected) return;
    light(player);
    if (!player.paused) requestAnimationFrame(() => follow(player));
  };
  const isOurs = (node) => node instanceof HTMLAudioElement && node.closest('.st-card');
  document.addEventListener('play', (event) => {
    if (!isOurs(event.target)) return;
    for (const other of document.querySelectorAll('.st-card audio')) if (other !== event.target) other.pause();
    follow(event.target);
  }, true);
  for (const name of ['timeupdate', 'seeked', 'ended']) {
    document.addEventListener(name, (event) => { if (isOurs(event.target)) light(event.target); }, true);
  }
  document.addEventListener('click', (event) => {
    const part = event.target.closest?.('.st-group [data-start]');
    const strip = event.target.closest?.('.st-strip');
    if (part) {
      const players = [...part.closest('.st-group').querySelectorAll('audio')];
      const player = players.find((one) => !one.paused) ?? players[0];
      player.currentTime = Number(part.dataset.start) + 0.001;
      player.play();
    } else if (strip) {
      const player = strip.closest('.st-card').querySelector('audio');
      const box = strip.getBoundingClientRect();
      player.currentTime = player.duration * (event.clientX - box.left) / box.width;
      player.play();
    }
  });
  // Gradio refuses what is no audio before it is sent, with a list of all types; a sentence says it better.
  new MutationObserver(() => {
    for (const toast of document.querySelectorAll('.toast-message-text, .toast-text')) {
      const name = toast.textContent.match(/^\\s*Invalid file type: (.*)\\. Only audio/)?.[1];
      if (name) toast.textContent = `${name} is no audio file. Upload one, such as WAV, FLAC, MP3 or Ogg.`;
    }
  }).observe(document.documentElement, { childList: true, subtree: true });
})();
</script>"""
