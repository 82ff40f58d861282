// The scripts that `sf completion` prints. They know nothing of the commands: each asks the `sf` that
// stands on the line (`answer.ts`), so that a script never grows old.

export const SHELLS = ['bash', 'zsh', 'fish'] as const;
export type Shell = (typeof SHELLS)[number];

const bash = `# Completion of sf for bash: source <(sf completion bash)
_sf_complete() {
  local value
  COMPREPLY=()
  while IFS=$'\\t' read -r value _; do
    case $value in
      :files) compopt -o default ;;
      :folders) compopt -o dirnames ;;
      *) COMPREPLY+=("$value") ;;
    esac
  done < <("\${COMP_WORDS[0]}" __complete "\${COMP_WORDS[@]:1:COMP_CWORD}" 2> /dev/null)
}
complete -F _sf_complete sf
`;

const zsh = `#compdef sf
# Completion of sf for zsh: source <(sf completion zsh), or save it as _sf in a folder of $fpath.
_sf() {
  local line
  local -a described
  for line in "\${(@f)$("\${words[1]}" __complete "\${(@)words[2,CURRENT]}" 2> /dev/null)}"; do
    case $line in
      '') ;;
      :files) _files; return ;;
      :folders) _files -/; return ;;
      *$'\\t'*) described+=("\${\${line%%$'\\t'*}//:/\\\\:}:\${line#*$'\\t'}") ;;
      *) described+=("\${line//:/\\\\:}") ;;
    esac
  done
  _describe sf described
}
if [[ "\${funcstack[1]}" == _sf ]]; then _sf "$@"; else compdef _sf sf; fi
`;

const fish = `# Completion of sf for fish: sf completion fish | source
function __sf_complete
  set -l words (commandline --tokenize --cut-at-cursor --current-process)
  set -l current (commandline --current-token --cut-at-cursor)
  for line in (command $words[1] __complete $words[2..] "$current" 2> /dev/null)
    switch $line
      case ':files' ':folders'
        __fish_complete_path "$current"
      case '*'
        echo $line
    end
  end
end
complete --command sf --no-files --arguments '(__sf_complete)'
`;

export const completionScripts: Readonly<Record<Shell, string>> = { bash, zsh, fish };
